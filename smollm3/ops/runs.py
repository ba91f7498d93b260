"""Padding and packed documents as runs of tokens, the form that variable-length kernels read.

In: which document each token belongs to, or a ready-made mask. Out: `Runs`: indices and bounds. Knows no
kernel.
Shapes: B batch, T queries, S keys, Nq and Nk queries and keys that are not padding, R runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from smollm3.errors import ParameterError


@dataclass(frozen=True)
class Runs:
    """Which queries and keys belong together: run r has queries query_bounds[r:r+2] and keys
    key_bounds[r:r+2].

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
        """Return indices into B*S for rows of `num_keys` keys."""
        return self.key_row * num_keys + self.key_col


def runs_of_documents(key_doc: Tensor, past: int) -> Runs:
    """Make one run per document and row; key_doc [B, past + T] is -1 where a token is padding."""
    B = key_doc.shape[0]
    width = int(key_doc.max()) + 1
    first = torch.arange(B, device=key_doc.device)[:, None] * width
    run = torch.where(key_doc >= 0, key_doc + first, -1)
    key_row, key_col = (run >= 0).nonzero(as_tuple=True)
    return _runs(run[:, past:], run[key_row, key_col], key_row, key_col, B * width)


def runs_of_mask(allowed: Tensor) -> Runs:
    """Make one run per row of a ready-made mask [B, 1, T, S] that is causal over the keys each row uses.

    Raises ParameterError for any other pattern: variable-length kernels cannot express it.
    """
    seen = allowed[:, 0]  # [B, T, S]
    keys = seen.any(1)  # [B, S]
    counts = seen.sum(-1)  # [B, T]
    real = counts > 0
    left = real.long().flip(-1).cumsum(-1).flip(-1)  # queries from this one to the last
    in_turn = (counts == keys.sum(-1, keepdim=True) - left + 1) | ~real
    causal = keys[:, None, :] & (keys.long().cumsum(-1)[:, None, :] <= counts[..., None])
    if not bool(in_turn.all()) or not torch.equal(causal, seen):
        raise ParameterError(
            "flash_attention_2 takes ready-made masks only where each query sees one key more than the one "
            "before: pass attn_implementation='sdpa'"
        )
    row = torch.arange(seen.shape[0], device=seen.device)[:, None]
    key_row, key_col = keys.nonzero(as_tuple=True)
    return _runs(torch.where(real, row, -1), key_row, key_row, key_col, seen.shape[0])


def _runs(query_run: Tensor, key_run: Tensor, key_row: Tensor, key_col: Tensor, num_runs: int) -> Runs:
    """Count and bound; query_run [B, T] is -1 for padding, key_run [Nk] has none."""
    flat = query_run.flatten()
    query_idx = (flat >= 0).nonzero().squeeze(-1)
    query_counts = torch.bincount(flat[query_idx], minlength=num_runs)
    key_counts = torch.bincount(key_run, minlength=num_runs)
    asked = query_counts > 0
    if not bool(asked.all()):  # numbers without tokens, and documents that only the cache holds
        keep = asked[key_run]
        key_row, key_col = key_row[keep], key_col[keep]
        query_counts, key_counts = query_counts[asked], key_counts[asked]
    return Runs(
        query_idx,
        key_row,
        key_col,
        _bounds(query_counts),
        _bounds(key_counts),
        int(query_counts.max()),
        int(key_counts.max()),
    )


def _bounds(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
