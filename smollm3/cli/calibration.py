"""The calibration text of `smollm3 quantize --method gptq`: a file in, windows of token ids out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("nearest", "gptq")
WINDOW = 512  # ids
MAX_WINDOWS = 64


def check_method(method: str, calibration: Path | None) -> None:
    """Raise ParameterError unless `method` exists and has a calibration text exactly where it needs one."""
    if method not in METHODS:
        raise ParameterError(f"--method {method}: give one of {', '.join(METHODS)}")
    if method == "gptq" and calibration is None:
        raise ParameterError("--method gptq needs a text to calibrate on: pass --calibration FILE")
    if method != "gptq" and calibration is not None:
        raise ParameterError("--calibration is for GPTQ: pass --method gptq with it, or leave it out")


def calibration_windows(model: Path, text: Path, context: int) -> "list[Tensor]":
    """Return up to MAX_WINDOWS windows [1, WINDOW] of a text's ids, spread over all of it.

    Args:
        model: the resolved model, which has the tokenizer.
        context: positions of the model; where it has fewer than WINDOW, windows are so long.

    Raises ParameterError for a file that is missing, no UTF-8 text or too short for one window.
    """
    import torch

    from smollm3.tokenization import SmolLM3Tokenizer

    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ParameterError(f"--calibration {text} cannot be read: {reason}; give a plain text") from None
    ids = SmolLM3Tokenizer.from_pretrained(model).encode(content, add_special_tokens=False)
    size = min(WINDOW, context)
    if len(ids) < size:
        raise ParameterError(
            f"--calibration {text} has {len(ids)} tokens, and a window has {size}: give more"
        )
    windows = torch.tensor(ids[: len(ids) // size * size]).view(-1, 1, size)
    count = min(len(windows), MAX_WINDOWS)
    print(f"calibrating on {count * size} of the {len(ids)} tokens of {text}", file=sys.stderr)
    return [windows[i * len(windows) // count] for i in range(count)]
