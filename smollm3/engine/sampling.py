"""Logits in, chosen ids out: tensor functions over rows, each row with its own parameters.

R rows, V vocabulary, N single logits to edit. Functions with a trailing underscore edit `logits` in place.
Truncation (top-k, top-p, min-p) is one floor per row: ids below it are out and ids tied at it stay in, so no
sort of the vocabulary is needed and the outcome depends neither on a sort's order nor on the other rows.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_CANDIDATES = 64  # likeliest ids that mostly hold a nucleus; else 16 times more, and so on to all
NUM_LINES = 64  # a row is laid out as, to look for its largest logits by columns
COLDEST = 1e-30  # temperature: logits divided by less overflow, and the likeliest id has all mass long before
STRONGEST = 1e4  # repetition penalty, and one over it: beyond, logits overflow once divided by COLDEST
CACHED = 2**18  # logits at a time on the CPU: what is computed from them stays in its cache
STRETCH = 512  # neighbouring ids whose masses are summed before one of them is drawn


def add_(logits: Tensor, rows: Tensor, ids: Tensor, values: Tensor) -> None:
    """Add values [N] to logits [R, V] at (rows, ids) [N]; duplicates add up."""
    logits.index_put_((rows, ids), values, accumulate=True)


def penalise_repetition_(logits: Tensor, rows: Tensor, ids: Tensor, penalties: Tensor) -> None:
    """Divide positive logits at (rows, ids) by penalties [N], multiply negative ones."""
    x, penalties = logits[rows, ids], penalties.clamp(1 / STRONGEST, STRONGEST)
    logits[rows, ids] = torch.where(x < 0, x * penalties, x / penalties)


def forbid_outside_(logits: Tensor, mask: NDArray[np.uint32]) -> None:
    """Set the logits [V] of ids that a constraint's mask leaves out to -inf."""
    words = np.ascontiguousarray(mask, dtype="<u4")
    allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(logits)].view(np.bool_)
    logits[len(allowed) :] = -math.inf
    logits[: len(allowed)].masked_fill_(~torch.from_numpy(allowed).to(logits.device), -math.inf)


def forbid_(logits: Tensor, rows: Tensor, ids: Tensor) -> None:
    logits[rows, ids] = -math.inf


def warp_(
    logits: Tensor,
    temperature: Sequence[float],
    top_k: Sequence[int],
    top_p: Sequence[float],
    min_p: Sequence[float],
) -> None:
    """Divide logits [R, V] by the temperature; -inf where top-k, then top-p, then min-p rule an id out.

    Off is 0 for top_k, 1 for top_p, 0 for min_p.
    """
    for rows in _parts(logits):
        part, k = logits[rows], top_k[rows]
        if any(t != 1.0 for t in temperature[rows]):
            part /= _column([max(t, COLDEST) for t in temperature[rows]], part)
        if any(k):
            num = min(max(k), part.shape[-1])
            at = torch.tensor([min(of_row, num) for of_row in k], device=part.device)[:, None]
            floor = _largest(part, num).gather(1, (at - 1).clamp_(min=0))
            _cut_(part, torch.where(at > 0, floor, -math.inf))
        if any(p < 1 for p in top_p[rows]):
            _cut_(part, _nucleus_floor(part, _column(top_p[rows], part)))
        if any(min_p[rows]):
            below = [math.log(p) if p else -math.inf for p in min_p[rows]]
            _cut_(part, part.amax(-1, keepdim=True) + _column(below, part))


def _parts(logits: Tensor) -> Iterator[slice]:
    """Cut the rows of logits [R, V] into runs to work on one after the other."""
    R, V = logits.shape
    step = max(1, CACHED // V) if logits.device.type == "cpu" else R
    return (slice(start, start + step) for start in range(0, R, step))


def _cut_(logits: Tensor, floor: Tensor) -> None:
    logits.masked_fill_(logits < floor, -math.inf)


def _largest(logits: Tensor, num: int) -> Tensor:
    """Return the `num` largest logits of each row [R, num], descending, without ordering the whole row.

    They lie in the `num` columns whose own largest logits are largest.
    """
    R, V = logits.shape
    whole = V // NUM_LINES * NUM_LINES
    if num * NUM_LINES * 2 > whole:
        return logits.topk(num).values
    lines = logits[:, :whole].view(R, NUM_LINES, -1)  # [R, NUM_LINES, columns]
    best = lines.amax(1).topk(num, sorted=False).indices  # [R, num]
    found = lines.gather(2, best[:, None].expand(-1, NUM_LINES, -1)).flatten(1)
    return torch.cat((found, logits[:, whole:]), 1).topk(num).values


def _nucleus_floor(logits: Tensor, top_p: Tensor) -> Tensor:
    """Return the smallest logit of the shortest run of likeliest ids whose mass reaches top_p, [R, 1]."""
    V = logits.shape[-1]
    log_mass = _log_mass(logits)
    candidates = _largest(logits, min(NUM_CANDIDATES, V))
    while True:
        p = (candidates - log_mass).exp()
        reached = p.cumsum(-1)
        whole = candidates.shape[-1] == V
        if whole or bool(((reached[:, -1:] >= top_p) | candidates[:, -1:].isneginf() | (top_p >= 1)).all()):
            break
        candidates = _largest(logits, min(16 * candidates.shape[-1], V))
    inside = reached - p < top_p
    inside[:, 0] = True
    lowest = torch.where(inside, candidates, math.inf).amin(-1, keepdim=True)
    return torch.where(top_p >= 1, -math.inf, lowest)


def likeliest(scores: Tensor) -> tuple[list[int], list[float]]:
    """Return each row's likeliest id, the first of equals, and its score; NaN counts as the largest."""
    if scores.device.type == "cpu":  # numpy finds it seven times as fast
        ids = torch.from_numpy(scores.numpy().argmax(-1))
    else:
        ids = scores.argmax(-1)
    return ids.tolist(), scores.gather(-1, ids[:, None])[:, 0].tolist()


def draw(scores: Tensor, uniforms: Sequence[float]) -> Tensor:
    """Return ids [R]: each row's inverse cumulative distribution, ids ascending, at uniforms in [0, 1).

    A stretch of ids is found by the masses of all stretches, then the id by those of its stretch.
    """
    return torch.cat([_draw_part(scores[rows], uniforms[rows]) for rows in _parts(scores)])


def _draw_part(scores: Tensor, uniforms: Sequence[float]) -> Tensor:
    weights = _weights(scores, scores.amax(-1, keepdim=True))
    rows = torch.arange(len(scores), device=scores.device)
    reached = weights.sum(-1, dtype=torch.float64).cumsum(-1)  # [R, V / STRETCH]
    stretch, rest = _invert(reached, _column(uniforms, reached) * reached[:, -1:])
    inside = weights[rows, stretch].double().cumsum(-1)  # [R, STRETCH]
    return stretch * STRETCH + _invert(inside, rest)[0]


def _weights(logits: Tensor, top: Tensor) -> Tensor:
    """Return exp(logits - top [R, 1]) in stretches of ids, zeros at the end: [R, V / STRETCH, STRETCH]."""
    R, V = logits.shape
    weights = logits.new_zeros(R, -(-V // STRETCH), STRETCH)
    flat = weights.view(R, -1)[:, :V]
    torch.sub(logits, top, out=flat)
    flat.exp_()
    return weights


def _log_mass(logits: Tensor) -> Tensor:
    """Return the logarithm of the sum of exp(logits), fp64 [R, 1].

    torch.logsumexp splits a single row between threads and several rows not, so a row's last bit would
    depend on its company; the sums of stretches have one order.
    """
    top = logits.amax(-1, keepdim=True)
    mass = _weights(logits, top).sum(-1, dtype=torch.float64).cumsum(-1)[:, -1:]
    return top + mass.log()


def _invert(reached: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rising sums [R, N] first pass target [R, 1], and what is left of the target there."""
    total = reached[:, -1:]
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    at = torch.searchsorted(reached, target, right=True)
    before = reached.gather(1, (at - 1).clamp_(min=0)).masked_fill_(at == 0, 0.0)
    return at[:, 0], target - before


def log_probabilities(logits: Tensor, ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of ids [R], and of the num_top likeliest: [R], values and ids [R, num_top]."""
    parts = [_log_probabilities(logits[rows], ids[rows], num_top) for rows in _parts(logits)]
    chosen, top, top_ids = zip(*parts, strict=True)
    return torch.cat(chosen), torch.cat(top), torch.cat(top_ids)


def _log_probabilities(logits: Tensor, ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    log_mass = _log_mass(logits)
    chosen = logits.gather(1, ids[:, None]) - log_mass
    top = logits.topk(min(num_top, logits.shape[-1]))
    return chosen[:, 0].float(), (top.values - log_mass).float(), top.indices


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
