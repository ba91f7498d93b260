"""A tiny random model, and rows of ids for it, padded or not."""

from typing import Any

import torch
from torch import Tensor

from smollm3.model.config import SmolLM3Config
from smollm3.model.smollm3 import SmolLM3ForCausalLM


def tiny(**fields: Any) -> SmolLM3Config:
    """The config of a model with four small layers."""
    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
        "rope_theta": 5e6,
    }
    return SmolLM3Config(**{**settings, **fields})


def model(**fields: Any) -> SmolLM3ForCausalLM:
    torch.manual_seed(0)
    return SmolLM3ForCausalLM(tiny(**fields)).eval()


def ids_of(*lengths: int, seed: int = 0) -> list[Tensor]:
    """Random rows of ids [1, length]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 64, (1, length), generator=generator) for length in lengths]


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


def padded(rows: list[Tensor], side: str, fill: int = 0) -> tuple[Tensor, Tensor]:
    """The rows as one batch, and its mask, both [R, T]."""
    T = max(row.shape[1] for row in rows)
    ids, mask = torch.full((len(rows), T), fill), torch.zeros(len(rows), T, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(T - row.shape[1], None) if side == "left" else slice(None, row.shape[1])
        ids[i, place] = row[0]
        mask[i, place] = 1
    return ids, mask
