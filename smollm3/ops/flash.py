"""Attention through the flash-attn package (an extra; CUDA only).

In: queries, keys, values and a `Visibility`. Out: the mixed values. Padding and packed documents become runs of
variable length, so no [T, S] mask is read by the kernel. The plain reference is `eager` in ops/attention.py.
Shapes: B batch, T queries, S keys, H query heads, K kv heads, D head dim, N queries or keys that are not padding.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smollm3.errors import DeviceError, MissingDependencyError, ParameterError
from smollm3.ops.mask import Visibility


def require_flash(device: torch.device) -> None:
    """Raise the one line that says what is missing and what to pass instead."""
    if device.type != "cuda":
        raise DeviceError(
            f"flash_attention_2 needs a CUDA device, and the model is on {device.type}: "
            "pass attn_implementation='sdpa'"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise MissingDependencyError(
            "flash_attention_2 needs the flash-attn package: pip install 'smollm3[flash-attn]', "
            "or pass attn_implementation='sdpa'"
        )


def flash(q: Tensor, k: Tensor, v: Tensor, mask: Visibility, *, scale: float, dropout: float) -> Tensor:
    """Mix the values: q [B, H, T, D], k and v [B, K, S, D] -> [B, T, H, D]; padding rows come out as zeros."""
    require_flash(q.device)
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise DeviceError(
            f"flash_attention_2 computes in float16 or bfloat16, not {q.dtype}: load with dtype='bfloat16' or pass "
            "attn_implementation='sdpa'"
        )
    return _run(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale, dropout)


def _run(q: Tensor, k: Tensor, v: Tensor, mask: Visibility, scale: float, dropout: float) -> Tensor:
    """The kernel calls, on [B, T, H, D] and [B, S, K, D]."""
    import flash_attn

    settings: dict[str, Any] = {"dropout_p": dropout, "softmax_scale": scale, "causal": True}
    if mask.window is not None:
        settings["window_size"] = (mask.window - 1, 0)
    B, T = q.shape[:2]
    if mask.allowed is not None and mask.key_doc is None and mask.past == 0:
        runs = runs_of_mask(mask.allowed.expand(B, -1, -1, -1))
    elif mask.key_doc is not None:
        runs = runs_of_documents(mask.key_doc, mask.past)
    else:
        total = mask.past + T
        mixed: Tensor = flash_attn.flash_attn_func(q, k[:, :total], v[:, :total], **settings)
        return mixed
    packed = flash_attn.flash_attn_varlen_func(
        q.flatten(0, 1)[runs.query_idx],
        k.flatten(0, 1)[runs.key_idx(k.shape[1])],
        v.flatten(0, 1)[runs.key_idx(k.shape[1])],
        runs.query_bounds,
        runs.key_bounds,
        runs.max_queries,
        runs.max_keys,
        **settings,
    )
    out = torch.zeros_like(q).flatten(0, 1)
    return out.index_copy(0, runs.query_idx, packed).view_as(q)


@dataclass(frozen=True)
class Runs:
    """Which queries and keys belong together: run r holds queries query_bounds[r]..[r+1] and keys likewise.

    The last query of a run sees all its keys, each one before it sees one key less.
    """

    query_idx: Tensor  # [Nq] into B*T
    key_row: Tensor  # [Nk] batch row of each key
    key_col: Tensor  # [Nk] its place in the row
    query_bounds: Tensor  # int32 [R + 1]
    key_bounds: Tensor  # int32 [R + 1]
    max_queries: int
    max_keys: int

    def key_idx(self, num_keys: int) -> Tensor:
        """Indices into B*S for rows of `num_keys` keys."""
        return self.key_row * num_keys + self.key_col


def runs_of_documents(key_doc: Tensor, past: int) -> Runs:
    """One run per document and row; key_doc [B, past + T] is -1 where a token is padding."""
    B, total = key_doc.shape
    width = int(key_doc.max()) + 1 if key_doc.numel() else 1
    run = torch.where(key_doc >= 0, key_doc + torch.arange(B, device=key_doc.device)[:, None] * width, -1)
    query_run = run[:, past:]
    key_row, key_col = (run >= 0).nonzero(as_tuple=True)
    num_runs = B * max(width, 1)
    return _runs(query_run, run[key_row, key_col], key_row, key_col, num_runs)


def runs_of_mask(allowed: Tensor) -> Runs:
    """One run per row of a ready-made mask [B, 1, T, S], where each row is causal over the keys it uses.

    Raises ParameterError for any other pattern: the kernel has no way to see it.
    """
    seen = allowed[:, 0]  # [B, T, S]
    B, T, _ = seen.shape
    keys = seen.any(1)  # [B, S]
    counts = seen.sum(-1)  # [B, T]
    real = counts > 0
    expected = keys.sum(-1, keepdim=True) - real.long().flip(-1).cumsum(-1).flip(-1) + 1
    in_order = keys[:, None, :] & (keys.long().cumsum(-1)[:, None, :] <= counts[..., None])
    if not bool(((counts == expected) | ~real).all()) or not torch.equal(in_order, seen):
        raise ParameterError(
            "flash_attention_2 takes causal ready-made masks only (each query one key more than the one before): "
            "pass attn_implementation='sdpa'"
        )
    row = torch.arange(B, device=seen.device)[:, None]
    key_row, key_col = keys.nonzero(as_tuple=True)
    return _runs(torch.where(real, row, -1), key_row, key_row, key_col, B)


def _runs(query_run: Tensor, key_run: Tensor, key_row: Tensor, key_col: Tensor, num_runs: int) -> Runs:
    flat = query_run.flatten()
    query_idx = (flat >= 0).nonzero().squeeze(-1)
    query_counts = torch.bincount(flat[query_idx], minlength=num_runs)
    key_counts = torch.bincount(key_run, minlength=num_runs)
    used = query_counts > 0
    if not bool(used.all()):  # documents that are only in the cache: no query asks for them
        keep = used[key_run]
        key_row, key_col = key_row[keep], key_col[keep]
        query_counts, key_counts = query_counts[used], key_counts[used]

    def bounds(counts: Tensor) -> Tensor:
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)

    most_queries, most_keys = int(query_counts.max()), int(key_counts.max())
    return Runs(query_idx, key_row, key_col, bounds(query_counts), bounds(key_counts), most_queries, most_keys)
