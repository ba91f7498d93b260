"""Logits in, chosen ids out: tensor functions over rows, each row with its own parameters.

R rows, V vocabulary, N single logits to edit. Functions with a trailing underscore edit `logits` in place.
Truncation (top-k, top-p, min-p) is one floor per row: ids below it are out and ids tied at it stay in, so no
sort of the vocabulary is needed and the outcome depends neither on a sort's order nor on the other rows.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_CANDIDATES = 1024  # likeliest ids that nearly always hold a nucleus; else 16 times more, then all


def add_(logits: Tensor, rows: Tensor, ids: Tensor, values: Tensor) -> None:
    """Add values [N] to logits [R, V] at (rows, ids) [N]; duplicates add up."""
    logits.index_put_((rows, ids), values, accumulate=True)


def penalise_repetition_(logits: Tensor, rows: Tensor, ids: Tensor, penalties: Tensor) -> None:
    """Divide positive logits at (rows, ids) by penalties [N], multiply negative ones."""
    x = logits[rows, ids]
    logits[rows, ids] = torch.where(x < 0, x * penalties, x / penalties)


def forbid_outside_(logits: Tensor, mask: NDArray[np.uint32]) -> None:
    """Set the logits [V] of ids that a constraint's mask leaves out to -inf."""
    words = np.ascontiguousarray(mask, dtype="<u4")
    allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(logits)].view(np.bool_)
    logits[len(allowed) :] = -math.inf
    logits[: len(allowed)].masked_fill_(~torch.from_numpy(allowed).to(logits.device), -math.inf)


def forbid_(logits: Tensor, rows: Tensor, ids: Tensor) -> None:
    logits[rows, ids] = -math.inf


def warp(
    logits: Tensor,
    temperature: Sequence[float],
    top_k: Sequence[int],
    top_p: Sequence[float],
    min_p: Sequence[float],
) -> Tensor:
    """Return logits [R, V] over the temperature, -inf where top-k, then top-p, then min-p rule an id out.

    Off is 0 for top_k, 1 for top_p, 0 for min_p.
    """
    if any(t != 1.0 for t in temperature):
        logits = logits / _column(temperature, logits)
    if not (any(top_k) or any(p < 1 for p in top_p) or any(min_p)):
        return logits
    floor = _floor(logits, top_k, top_p, min_p)
    return torch.where(logits < floor, -math.inf, logits)


def _floor(logits: Tensor, top_k: Sequence[int], top_p: Sequence[float], min_p: Sequence[float]) -> Tensor:
    """Return the smallest logit that each row keeps, [R, 1]."""
    V = logits.shape[-1]
    largest_k = min(max(top_k), V)
    nucleus = any(p < 1 for p in top_p)
    num = min(V, max(largest_k, NUM_CANDIDATES if nucleus and min(top_k) == 0 else 0, 1))
    candidates = logits.topk(num).values  # [R, C], descending
    floor = torch.full_like(candidates[:, :1], -math.inf)
    if largest_k:
        k = torch.tensor([min(k, V) for k in top_k], device=logits.device)[:, None]
        floor = torch.where(k > 0, candidates.gather(1, (k - 1).clamp_(min=0)), floor)
    if nucleus:
        floor = torch.maximum(floor, _nucleus_floor(logits, candidates, floor, _column(top_p, logits)))
    if any(min_p):
        below = [math.log(p) if p else -math.inf for p in min_p]
        floor = torch.maximum(floor, candidates[:, :1] + _column(below, logits))
    return floor


def _nucleus_floor(logits: Tensor, candidates: Tensor, floor: Tensor, top_p: Tensor) -> Tensor:
    """Return the smallest logit of the shortest run of likeliest ids whose mass reaches top_p, [R, 1]."""
    kept = torch.where(logits < floor, -math.inf, logits)
    log_mass = kept.logsumexp(-1, keepdim=True)
    while True:
        p = torch.where(candidates < floor, 0.0, (candidates - log_mass).double().exp())
        reached = p.cumsum(-1)
        whole = candidates.shape[-1] == logits.shape[-1]
        if whole or bool(((reached[:, -1:] >= top_p) | (candidates[:, -1:] < floor) | (top_p >= 1)).all()):
            break
        candidates = logits.topk(min(16 * candidates.shape[-1], logits.shape[-1])).values
    inside = reached - p < top_p
    inside[:, 0] = True
    lowest = torch.where(inside, candidates, math.inf).amin(-1, keepdim=True)
    return torch.where(top_p >= 1, -math.inf, lowest)


def draw(scores: Tensor, uniforms: Sequence[float]) -> Tensor:
    """Return ids [R]: each row's inverse cumulative distribution, ids ascending, at uniforms in [0, 1)."""
    cdf = scores.double().softmax(-1).cumsum(-1)
    total = cdf[:, -1:]
    target = torch.minimum(_column(uniforms, cdf) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True)[:, 0]


def log_probabilities(logits: Tensor, ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of ids [R], and of the num_top likeliest: [R], values and ids [R, num_top]."""
    log_mass = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(1, ids[:, None]) - log_mass
    top = logits.topk(min(num_top, logits.shape[-1]))
    return chosen[:, 0], top.values - log_mass, top.indices


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
