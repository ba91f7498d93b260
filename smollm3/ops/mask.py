"""Which keys a query may see: causal order, padding, packed documents, sliding windows.

In: an attention mask and position ids as a caller has them, and how much is cached. Out: a `Visibility` that
every attention implementation can read. Knows no layer and no config.
Shapes: B batch, T new tokens (queries), S keys, of which the first `past` are cached.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smollm3.errors import ParameterError


@dataclass(frozen=True)
class Visibility:
    """What a layer's queries may see.

    `allowed` is bool [B or 1, 1, T, S]; a query that may see nothing (padding) gets zeros. None says that
    order alone decides: query i sees keys 0..i, and a single query (T = 1) sees every key. The rest is for
    kernels that read no such mask: `key_doc` [B, past + T] numbers each token's document, -1 for padding
    (None: one document, no padding); `window` is how far a query looks back; `ready_made` is the mask that a
    caller gave instead of these, before the window.
    """

    allowed: Tensor | None = None
    key_doc: Tensor | None = None
    window: int | None = None
    past: int = 0
    ready_made: Tensor | None = None
    derived: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def derive(self, name: str, build: Callable[["Visibility"], Any]) -> Any:
        """Return what an implementation computes from this, once for all layers of a forward pass."""
        if name not in self.derived:
            self.derived[name] = build(self)
        return self.derived[name]


@dataclass(frozen=True)
class Layout:
    """A batch as the masks see it; `real` (False: padding), `doc`: [B, past + T], None where uniform."""

    batch_size: int
    num_queries: int
    num_keys: int
    past: int
    device: torch.device
    real: Tensor | None
    doc: Tensor | None


def positions_from_mask(attention_mask: Tensor, past: int, num_queries: int) -> Tensor:
    """Number the real tokens of each row from 0, so that a padded row counts like the row alone.

    Args:
        attention_mask: [B, >= past + T], nonzero where a token is real.

    Returns:
        [B, T]; leading padding counts as 0, padding at the end counts on.
    """
    count = attention_mask[:, : past + num_queries].bool().long()
    seen = count.cumsum(-1)
    tail = seen == seen[:, -1:]
    positions = torch.where(tail, seen[:, -1:] + tail.long().cumsum(-1) - 1, seen) - 1
    return positions.clamp_(min=0)[:, past:]


def layout(
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    *,
    batch_size: int,
    num_queries: int,
    num_keys: int,
    past: int,
    device: torch.device,
) -> Layout:
    """Find padding and packed documents.

    Args:
        attention_mask: [B, past + T] or [B, S], nonzero where a token is real; None: all are.
        position_ids: [B, T] as the caller gave them, or None. Where they do not rise from one real token to
            the
            next, a new document starts, which sees nothing of the one before.
    """
    total = past + num_queries
    real = None
    if attention_mask is not None:
        if attention_mask.shape[0] != batch_size or attention_mask.shape[1] not in (total, num_keys):
            raise ParameterError(
                f"attention_mask has shape {list(attention_mask.shape)}; {batch_size} rows of {past} cached "
                f"and {num_queries} new tokens need [{batch_size}, {total}]"
            )
        real = attention_mask[:, :total].to(device).bool()
        if not torch.compiler.is_compiling() and bool(real.all()):
            real = None
    doc = None if position_ids is None else _documents(position_ids.expand(batch_size, -1), real, past)
    return Layout(batch_size, num_queries, num_keys, past, device, real, doc)


def _documents(positions: Tensor, real: Tensor | None, past: int) -> Tensor | None:
    """Number the documents of each row [B, past + T]; None when each row is a single one."""
    B, T = positions.shape
    new_real = torch.ones_like(positions, dtype=torch.bool) if real is None else real[:, past:]
    # The position of the last real token before each one; -1 before the first.
    before = torch.where(new_real, torch.arange(T, device=positions.device), -1).cummax(-1).values
    before = torch.cat((before.new_full((B, 1), -1), before[:, :-1]), dim=-1)
    previous = torch.where(before >= 0, positions.gather(-1, before.clamp(min=0)), -1)
    restarts = new_real & (positions <= previous)
    doc = torch.cat((restarts.new_zeros(B, past, dtype=torch.long), restarts.long().cumsum(-1)), dim=-1)
    if real is None and past:
        # A token at position p has p predecessors: cached tokens further back belong to an earlier document.
        index = torch.arange(past + T, device=positions.device)
        doc = torch.where(index < past - positions[:, :1], -1, doc)
    if not torch.compiler.is_compiling() and not bool(doc.any()):
        return None
    return doc


def visibility(where: Layout, window: int | None = None) -> Visibility:
    """Say what each query of the batch may see in a layer that looks back `window` tokens (None: all).

    Builds no [T, S] mask when order alone decides.
    """
    past, total, T = where.past, where.past + where.num_queries, where.num_queries
    window = window if window is not None and window < total else None
    key_doc = None
    if where.real is not None or where.doc is not None:
        doc = where.doc if where.doc is not None else torch.zeros_like(where.real, dtype=torch.long)  # type: ignore[arg-type]
        key_doc = doc if where.real is None else doc.masked_fill(~where.real, -1)
    ordered = past == 0 if T > 1 else where.num_keys == total
    if key_doc is None and window is None and ordered:
        return Visibility(past=past)
    query = torch.arange(past, total, device=where.device)[:, None]
    key = torch.arange(where.num_keys, device=where.device)[None, :]
    allowed = (key <= query)[None]  # [1, T, S]
    if window is not None:
        allowed = allowed & (key > query - window)
    if where.real is not None:
        allowed = allowed & _widened(where.real, where.num_keys)[:, None, :]
    if where.doc is not None:
        doc = torch.nn.functional.pad(where.doc, (0, where.num_keys - total), value=-1)
        allowed = allowed & (where.doc[:, past:, None] == doc[:, None, :])
    return Visibility(allowed[:, None], key_doc, window, past)


def _widened(real: Tensor, num_keys: int) -> Tensor:
    return torch.nn.functional.pad(real, (0, num_keys - real.shape[1]), value=False)


def given_visibility(allowed: Tensor, window: int | None = None) -> Visibility:
    """Take a ready-made bool mask [B, 1, T, S] (True: may attend) as it is.

    On a layer with a window, the last `window` keys that each query may see stay, wherever they lie.
    """
    if allowed.dtype != torch.bool or allowed.dim() != 4:
        raise ParameterError(
            f"a ready-made attention_mask must be bool [B, 1, T, S] (True: may attend), not {allowed.dtype} "
            f"{list(allowed.shape)}"
        )
    if window is None or window >= allowed.shape[-1]:
        return Visibility(allowed, ready_made=allowed)
    recent = allowed.flip(-1).cumsum(-1).flip(-1) <= window
    return Visibility(allowed & recent, window=window, ready_made=allowed)
