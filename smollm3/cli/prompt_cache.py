"""`smollm3 prompt-cache`: a system prompt in, a file with its past out, which serve, chat and generate load.

What is saved is what every chat with this system prompt begins with. The file's path goes to stdout.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3.cli.options import LoadOptions
from smollm3.errors import ParameterError

if TYPE_CHECKING:
    from smollm3.text.tokenizer import Tokenizer

# Two questions without a common beginning, and two days: what the prompt has in common with both is saved.
QUESTIONS = ("Who?", "7 + 5")
DAYS = ("2024-01-01", "2025-12-31")


def run_prompt_cache(
    options: LoadOptions,
    output: Path,
    *,
    system: str | None,
    system_file: Path | None,
    messages: Path | None,
    tools: Path | None,
    think: bool | None,
    threads: int | None,
    kv_bits: int,
) -> None:
    """Compute and write the file."""
    chat = _chat(system, system_file, messages)
    offered = None if tools is None else _read_list(tools, "--tools")
    if not output.parent.is_dir():
        raise ParameterError(f"{output.parent} is no folder: make it or give another file with -o")
    from smollm3.checkpoint.progress import progress
    from smollm3.cli.loading import load
    from smollm3.model.native_runner import NativeRunner
    from smollm3.model.prompt_cache import save_prompt_cache

    loaded = load(options)
    token_ids = common_ids(loaded.tokenizer, chat, tools=offered, enable_thinking=think)
    loaded.model.eval()
    runner = NativeRunner(loaded.model, threads=threads, kv_bits=kv_bits)
    save_prompt_cache(
        output, loaded.model, runner, token_ids, lambda starts: progress(starts, len(starts), "prompt")
    )
    if _dated(loaded.tokenizer, chat, tools=offered, enable_thinking=think):
        print(
            "note: this chat template prints the date: what comes after it is used again on this day only",
            file=sys.stderr,
        )
    print(f"{len(token_ids)} tokens, {output.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    print(output)


def common_ids(tokenizer: "Tokenizer", chat: Sequence[Any], **options: Any) -> list[int]:
    """Return the ids that every chat beginning with `chat` has, whatever is said next."""
    from smollm3.text.prompt import prompt_ids

    one, other = (
        prompt_ids(tokenizer, [*chat, {"role": "user", "content": question}], **options)
        for question in QUESTIONS
    )
    num = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    if num == 0:
        raise ParameterError("this chat template begins with the question: there is nothing to keep")
    return one[:num]


def _dated(tokenizer: "Tokenizer", chat: Sequence[Any], **options: Any) -> bool:
    return len({tuple(common_ids(tokenizer, chat, date=day, **options)) for day in DAYS}) > 1


def _chat(system: str | None, system_file: Path | None, messages: Path | None) -> list[Any]:
    if system is not None and system_file is not None:
        raise ParameterError("--system and --system-file exclude each other: give one of them")
    text = system if system_file is None else _read(system_file, "--system-file")
    chat = [] if text is None else [{"role": "system", "content": text}]
    chat += [] if messages is None else _read_list(messages, "--messages")
    if not chat:
        raise ParameterError("there is no prompt: give --system, --system-file or --messages")
    return chat


def _read_list(path: Path, option: str) -> list[Any]:
    try:
        found = json.loads(_read(path, option))
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{option} {path} is no JSON: {error}") from None
    if not isinstance(found, list):
        raise ParameterError(f"{option} {path}: give a JSON list")
    return found


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ParameterError(f"{option} {path}: {reason}") from None
