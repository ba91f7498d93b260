"""Rows of token ids through a model with a head, some at a time, padded on the right.

In: lists of ids of any lengths. Out: each row's logits in float32 on the CPU, without the padding. Knows no
    text.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from smollm3.errors import ContextOverflowError, PromptError
from smollm3.model.module import SmolLM3PreTrainedModel


def check_rows(model: SmolLM3PreTrainedModel, rows: Sequence[Sequence[int]], way_out: str) -> None:
    """Raise unless every row has ids and fits the model's context."""
    context_size = model.config.max_position_embeddings
    for row in rows:
        if not row:
            raise PromptError("the text is empty: give at least one token")
        if len(row) > context_size:
            raise ContextOverflowError(
                f"text of {len(row)} tokens is over the context of {context_size}: {way_out}"
            )


def logits_of(
    model: SmolLM3PreTrainedModel,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    *,
    fields: Sequence[str] = ("logits",),
    per_token: bool = True,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield, row by row, the named fields of the model's output: [T, ...], or [...] unless `per_token`."""
    device = next(model.parameters()).device
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        with torch.inference_mode():
            input_ids, attention_mask = pad(batch, device)
            output = model(input_ids=input_ids, attention_mask=attention_mask)
        columns = [output[field].float().cpu() for field in fields]
        for place, row in enumerate(batch):
            yield tuple(column[place, : len(row)] if per_token else column[place] for column in columns)


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return input_ids and attention_mask [B, T] of rows padded on the right (id 0; nothing sees it)."""
    longest = max(map(len, rows))
    input_ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    attention_mask = torch.tensor(
        [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device
    )
    return input_ids, attention_mask
