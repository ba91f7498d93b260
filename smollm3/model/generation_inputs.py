"""The rows of a prompt batch, however it was padded: tensors, lists and masks in, lists of ids out.

Padding is stripped, so that a row of a batch generates what it generates alone. Knows no model.
Shapes: B rows, W width of the padded batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smollm3.errors import PromptError
from smollm3.model.generation_config import GenerationConfig


@dataclass(frozen=True)
class Prompts:
    """`rows` hold each row's real ids; `input_ids` [B, W] is the batch as it was given."""

    rows: list[list[int]]
    input_ids: Tensor

    @property
    def width(self) -> int:
        return self.input_ids.shape[1]


def read_prompts(inputs: Any, attention_mask: Any, config: GenerationConfig, device: torch.device) -> Prompts:
    """Find the real ids of each row.

    Args:
        inputs: ids as a tensor [B, W] or [W], as a list, or as a list of lists, which may differ in length.
        attention_mask: like `inputs`, nonzero where an id is real, in any pattern. Without one, runs of the
            pad id at the start and the end of a row are padding, unless the pad id is also an eos id.

    Raises:
        PromptError: no ids, ids of another type, a mask of another shape, a row without a real id.
    """
    input_ids = inputs if isinstance(inputs, Tensor) else _tensor(inputs, config.padding_id, device)
    if input_ids.dim() == 1:
        input_ids = input_ids[None]
    if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        raise PromptError(
            f"input_ids is {input_ids.dtype} {list(input_ids.shape)}: give token ids [batch, length]"
        )
    rows = _real_ids(inputs, input_ids, attention_mask, config)
    for row_idx, row in enumerate(rows):
        if not row:
            raise PromptError(f"prompt {row_idx} is empty: give at least one token id that is not padding")
    if not rows:
        raise PromptError("there is no prompt: give at least one row of token ids")
    return Prompts(rows, input_ids)


def _real_ids(
    inputs: Any, input_ids: Tensor, attention_mask: Any, config: GenerationConfig
) -> list[list[int]]:
    """Return each row without its padding."""
    rows: list[list[int]] = input_ids.tolist()
    if attention_mask is not None:
        mask = torch.as_tensor(attention_mask)
        mask = mask[None] if mask.dim() == 1 else mask
        if mask.shape != input_ids.shape:
            raise PromptError(
                f"attention_mask is {list(mask.shape)} and input_ids {list(input_ids.shape)}: make them equal"
            )
        return [
            [token_id for token_id, is_real in zip(row, reals, strict=True) if is_real]
            for row, reals in zip(rows, mask.bool().tolist(), strict=True)
        ]
    if not isinstance(inputs, Tensor) and inputs and isinstance(inputs[0], Sequence):
        return [list(row) for row in inputs]
    if config.pad_token_id is not None and config.pad_token_id not in config.eos_ids:
        return [_stripped(row, config.pad_token_id) for row in rows]
    return rows


def _tensor(ids: Any, pad_id: int, device: torch.device) -> Tensor:
    """Return lists of ids as a tensor [B, W], shorter rows padded on the left."""
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise PromptError(
            f"input_ids is a {type(ids).__name__}: give token ids (a tokenizer makes them from text)"
        )
    nested = [row if isinstance(row, Sequence) and not isinstance(row, str) else None for row in ids]
    rows: list[Any] = [list(ids)] if all(row is None for row in nested) else nested
    for row in rows:
        if row is None or any(isinstance(item, bool) or not isinstance(item, int) for item in row):
            raise PromptError(
                "input_ids holds something that is no token id: give a list of ints, or lists of them"
            )
    width = max(map(len, rows))
    return torch.tensor(
        [[pad_id] * (width - len(row)) + list(row) for row in rows], dtype=torch.long, device=device
    )


def _stripped(row: list[int], pad_id: int) -> list[int]:
    """Take the runs of pad_id off both ends."""
    real = [place for place, token_id in enumerate(row) if token_id != pad_id]
    return row[real[0] : real[-1] + 1] if real else []
