"""A tokenizer's folder: tokenizer.json and the small files beside it, read as plain data and written again.

Nothing in these files is run or imported: the classes they name (`tokenizer_class`, `auto_map`) are not read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from smollm3.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
LEGACY_TEMPLATE_FILE = "chat_template.json"
TEMPLATE_FOLDER = "additional_chat_templates"


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says about its tokenizer."""

    backend: Tokenizer
    config: dict[str, Any] = field(default_factory=dict)
    chat_templates: dict[str, str] = field(default_factory=dict)  # "default" and named ones


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read a folder with a tokenizer.json; raise `CheckpointError` if it is missing or damaged."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER_FILE}: save the tokenizer there, or load one from its own folder"
        )
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(
            f"{path} is not a tokenizer: {str(error).splitlines()[0]}; fetch it again"
        ) from error
    config = _read_json(folder / CONFIG_FILE)
    if "added_tokens_decoder" not in config:
        config |= _read_json(folder / SPECIAL_TOKENS_FILE)
    return TokenizerFiles(backend, config, _read_templates(folder, config))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object; fetch it again")
    return content


def _read_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name; template files win over entries of the JSON files."""
    files: dict[str, str] = {}
    if (path := folder / TEMPLATE_FILE).is_file():
        files["default"] = _read_text(path)
    for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")):
        files[path.stem] = _read_text(path)
    if files:
        return files
    legacy = _read_json(folder / LEGACY_TEMPLATE_FILE).get("chat_template")
    return _templates_of(legacy if legacy is not None else config.get("chat_template"), folder)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text; fetch it again") from error


def _templates_of(entry: Any, folder: Path) -> dict[str, str]:
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    if isinstance(entry, list):  # [{"name": ..., "template": ...}]
        entry = {item.get("name"): item.get("template") for item in entry if isinstance(item, dict)}
    if isinstance(entry, dict) and all(isinstance(part, str) for item in entry.items() for part in item):
        return dict(entry)
    raise CheckpointError(f"{folder}: chat_template is neither a text nor a list of named texts")


def write_tokenizer_files(
    folder: Path,
    tokenizer_json: Mapping[str, Any],
    config: Mapping[str, Any],
    special_tokens: Mapping[str, Any],
    chat_templates: Mapping[str, str],
) -> tuple[str, ...]:
    """Write a folder that `read_tokenizer_files` and transformers open; return the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        TOKENIZER_FILE: json.dumps(tokenizer_json, ensure_ascii=False),
        CONFIG_FILE: json.dumps(config, ensure_ascii=False, indent=2) + "\n",
        SPECIAL_TOKENS_FILE: json.dumps(special_tokens, ensure_ascii=False, indent=2) + "\n",
    }
    for name, template in chat_templates.items():
        if Path(name).name != name:
            raise CheckpointError(f"chat template name {name!r} is not a plain file name; rename it")
        contents[TEMPLATE_FILE if name == "default" else f"{TEMPLATE_FOLDER}/{name}.jinja"] = template
    for relative, content in contents.items():
        path = folder / relative
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode("utf-8"))
    return tuple(str(folder / relative) for relative in contents)
