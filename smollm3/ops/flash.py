"""Attention through the flash-attn package (an extra; CUDA only).

In: queries, keys, values and a `Visibility`. Out: the mixed values. Padding and packed documents become runs
of variable length, so the kernel reads no [T, S] mask. Its plain reference is `eager` in attention.py.
Shapes: B batch, T queries, S keys, H query heads, K kv heads, D head dim.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from smollm3.errors import DeviceError, MissingDependencyError
from smollm3.ops.mask import Visibility
from smollm3.ops.runs import Runs, runs_of_documents, runs_of_mask


def require_flash(device: torch.device) -> None:
    """Raise the one line that says what is missing and what to pass instead."""
    if device.type not in ("cuda", "meta"):
        raise DeviceError(
            f"flash_attention_2 needs a CUDA device, and the model is on {device.type}: "
            "pass attn_implementation='sdpa'"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise MissingDependencyError(
            "flash_attention_2 needs the flash-attn package: pip install 'smollm3[flash-attn]', or pass "
            "attn_implementation='sdpa'"
        )


def flash(q: Tensor, k: Tensor, v: Tensor, mask: Visibility, *, scale: float, dropout: float) -> Tensor:
    """Mix the values: q [B, H, T, D], k and v [B, K, S, D] -> [B, T, H, D]; padding comes out as zeros.

    Raises DeviceError without CUDA or in another dtype than float16 and bfloat16, MissingDependencyError
    without the package.
    """
    require_flash(q.device)
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise DeviceError(
            f"flash_attention_2 computes in float16 or bfloat16, not {q.dtype}: load with dtype='bfloat16' "
            "or pass attn_implementation='sdpa'"
        )
    return run_kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale, dropout)


def run_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Visibility, scale: float, dropout: float) -> Tensor:
    """Call the kernel that fits the mask: q [B, T, H, D], k and v [B, S, K, D] -> [B, T, H, D]."""
    import flash_attn

    settings: dict[str, Any] = {"dropout_p": dropout, "softmax_scale": scale, "causal": True}
    if mask.window is not None:
        settings["window_size"] = (mask.window - 1, 0)
    runs = mask.derive("runs", _runs)
    if runs is None:
        total = mask.past + q.shape[1]
        mixed: Tensor = flash_attn.flash_attn_func(q, k[:, :total], v[:, :total], **settings)
        return mixed
    keys = runs.key_idx(k.shape[1])
    packed = flash_attn.flash_attn_varlen_func(
        q.flatten(0, 1)[runs.query_idx],
        k.flatten(0, 1)[keys],
        v.flatten(0, 1)[keys],
        runs.query_bounds,
        runs.key_bounds,
        runs.max_queries,
        runs.max_keys,
        **settings,
    )
    return torch.zeros_like(q).flatten(0, 1).index_copy(0, runs.query_idx, packed).view_as(q)


def _runs(mask: Visibility) -> Runs | None:
    if mask.ready_made is not None:
        return runs_of_mask(mask.ready_made)
    return None if mask.key_doc is None else runs_of_documents(mask.key_doc, mask.past)
