"""`smollm3 quantize`: a model in, a folder of packed weights for the native CPU engine out.

The folder appears under its name when it is whole: config, weights, and the tokenizer where there is one. Its
path goes to stdout, what was saved to stderr.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from smollm3.cli.calibration import calibration_windows, check_method
from smollm3.errors import CheckpointError, ParameterError
from smollm3.quantization.packed_config import PackedConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
TEMPLATE_FOLDER = "additional_chat_templates"


def run_quantize(
    model: str,
    config: PackedConfig,
    *,
    output: Path | None,
    method: str = "nearest",
    calibration: Path | None = None,
    revision: str | None,
    local_files_only: bool,
) -> None:
    """Quantise `model` as `config` says into the folder `output` (default: its name and the scheme).

    `method` is "nearest", or "gptq" with the text file `calibration`.
    """
    check_method(method, calibration)
    folder = output or Path(f"{_stem(model)}-{config.scheme}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ParameterError(f"{folder} exists: remove it or give another folder with --output")
    from smollm3.checkpoint.hub import resolve
    from smollm3.quantization.memory import memory_report

    path = resolve(model, revision=revision, local_files_only=local_files_only)
    if calibration is None:
        loaded = _model_class(path).from_pretrained(path, quantization_config=config)
    else:
        loaded = _calibrated(path, config, calibration)
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        loaded.save_pretrained(part)
        _save_tokenizer(path, part)
        part.replace(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror or error}): give another with --output"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{model} in {config.scheme}: {memory_report(loaded)}", file=sys.stderr)
    print(folder)


def _calibrated(path: Path, config: PackedConfig, calibration: Path) -> Any:
    """Load a model as floats and pack it by GPTQ."""
    from smollm3.checkpoint.source import open_checkpoint
    from smollm3.quantization.gptq_model import check_gptq, gptq_

    check_gptq(config)
    with open_checkpoint(path) as checkpoint:
        if checkpoint.config.get("quantization_config") is not None:
            raise ParameterError(f"{path} is quantised already: give the model that it was made from")
        dtype = checkpoint.stored_dtype
    loaded = _model_class(path).from_pretrained(path, dtype=dtype)
    gptq_(loaded, config, calibration_windows(path, calibration, loaded.config.max_position_embeddings))
    return loaded


def _stem(model: str) -> str:
    """The last part of a path or hub name, without the ending of a GGUF file."""
    return Path(model).name.removesuffix(".gguf") or "model"


def _model_class(path: Path) -> Any:
    """The class that the checkpoint was saved from; the language model where it does not say."""
    from smollm3.checkpoint.source import open_checkpoint
    from smollm3.model import heads, smollm3

    with open_checkpoint(path) as checkpoint:
        named = checkpoint.config.get("architectures") or ()
    for name in named if isinstance(named, list) else ():
        for module in (smollm3, heads):
            if isinstance(name, str) and name.startswith("SmolLM3") and hasattr(module, name):
                return getattr(module, name)
    return smollm3.SmolLM3ForCausalLM


def _save_tokenizer(source: Path, folder: Path) -> None:
    """Copy a folder's tokenizer files as they are, or write a GGUF file's tokenizer as files."""
    if source.is_file() or not (source / "config.json").is_file():
        from smollm3.tokenization import SmolLM3Tokenizer

        SmolLM3Tokenizer.from_pretrained(source).save_pretrained(folder)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / TEMPLATE_FOLDER).is_dir():
        shutil.copytree(source / TEMPLATE_FOLDER, folder / TEMPLATE_FOLDER)
