"""GPTQ for one matrix: codes chosen so that the layer's outputs, not its weights, stay close.

In: weights and the sum X^T X over the layer's inputs. Out: a packed matrix. Columns are rounded one after the
other, those with the largest inputs first, and what each rounding did to the outputs is taken up by the
columns still to come (Frantar et al., 2022, arXiv:2210.17323). Knows no model.
Shapes: R rows (outputs), C columns (inputs), G columns of a group, B columns of a block.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smollm3.native.codes import unpack_codes
from smollm3.native.matrix import Layout, Matrix, pack
from smollm3.native.quantize import quantize

# Of the mean of the diagonal, added to it: ten times the paper's, which costs little on texts like the one at
# hand and gains on others (docs/log.md).
DAMPING = 0.1
_MAX_DAMPING = 1.0
BLOCK = 128  # columns whose errors reach the columns behind them together
SOLVED_AT_ONCE = 1 << 24  # numbers of normal equations
ROUNDS = 2  # of codes for the scales, then scales for the codes


def gptq(weights: Tensor, gram: Tensor, layout: Layout, *, out: NDArray[np.uint8] | None = None) -> Matrix:
    """Round weights [R, C] to `layout`, int4 with or without minimums, for inputs with X^T X = `gram` [C, C].

    Each group's scale (and minimum) is at first the native quantiser's for the weights as they are, since the
    order of the columns takes groups apart; then all of a row's are fitted to its codes and the inputs, and
    the codes found anew.
    Raises ValueError for weights or sums that are not finite, or too large for f16 scales.
    """
    if layout.bits != 4 or layout.table is not None:
        raise ValueError(f"GPTQ rounds to int4, not to {layout}")
    W = weights.detach().float()
    _, scales, mins = unpack_codes(quantize(W.numpy(), layout, threads=torch.get_num_threads()))
    order = gram.diagonal().argsort(descending=True, stable=True)
    U = _inverse_factor(gram[order][:, order])
    for _ in range(ROUNDS):
        codes = _rounded(W, U, order, layout, scales, mins)
        scales, mins = _refitted(W, codes.float() - layout.zero, gram, scales, mins)
    return pack(layout, codes.numpy(), scales, mins, out)


def _rounded(
    W: Tensor,
    U: Tensor,
    order: Tensor,
    layout: Layout,
    scales: NDArray[np.float16],
    mins: NDArray[np.float16] | None,
) -> Tensor:
    """Return codes [R, C], found in the order of columns [C] that U [C, C] is in."""
    group, rest = order // layout.group, W[:, order]
    scale = torch.from_numpy(scales.astype(np.float32)).T
    low = torch.zeros_like(scale) if mins is None else torch.from_numpy(mins.astype(np.float32)).T
    codes = torch.empty(W.shape, dtype=torch.uint8)
    for begin in range(0, W.shape[1], BLOCK):
        end = begin + BLOCK
        some, own = slice(begin, end), group[begin:end]
        chosen, errors = _round_block(rest[:, some], U[some, some], scale[own], low[own], layout.zero)
        codes[:, order[some]] = chosen
        rest[:, end:] -= errors @ U[some, end:]
    return codes


def _round_block(W: Tensor, U: Tensor, scale: Tensor, low: Tensor, zero: int) -> tuple[Tensor, Tensor]:
    """Round W [R, B] column by column with scales and minimums [B, R]; return codes and errors [R, B]."""
    rest = W.T.contiguous()  # [B, R]: a column lies in one piece
    inverse = torch.where(scale != 0, 1 / scale, 0)
    codes, errors = torch.empty_like(rest), torch.empty_like(rest)
    for i, w in enumerate(rest):
        code = ((w - low[i]) * inverse[i]).round_().add_(zero).clamp_(0, 15)
        error = (w - (code - zero) * scale[i] - low[i]) / U[i, i]
        rest[i + 1 :].addr_(U[i, i + 1 :], error, alpha=-1)
        codes[i], errors[i] = code, error
    return codes.T.to(torch.uint8), errors.T


def _refitted(
    W: Tensor, Q: Tensor, gram: Tensor, scales: NDArray[np.float16], mins: NDArray[np.float16] | None
) -> tuple[NDArray[np.float16], NDArray[np.float16] | None]:
    """Return the scales (and minimums) [R, C / G] with which signed codes Q [R, C] change the outputs least.

    A least squares problem per row, in all its groups at once; a row that f16 makes worse keeps what it has.
    """
    H = gram.float().clone()
    H.diagonal().add_(DAMPING * H.diagonal().mean())
    n = scales.shape[1]
    old = torch.from_numpy(np.concatenate([scales] if mins is None else [scales, mins], 1).astype(np.float32))
    new = old.clone()
    rows = max(1, SOLVED_AT_ONCE // old.shape[1] ** 2)
    for begin in range(0, len(W), rows):
        some = slice(begin, begin + rows)
        features = [Q[some]] if mins is None else [Q[some], torch.ones_like(Q[some])]
        A, b = _normal_equations(W[some], features, H, n)
        new[some] = _better(A, b, old[some])
    whole = new.numpy().astype(np.float16)
    return whole[:, :n], None if mins is None else whole[:, n:]


def _normal_equations(W: Tensor, features: list[Tensor], H: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return A [R, F n, F n] and b [R, F n] for weights as sums of F features [R, C], each in n groups."""

    def by_group(x: Tensor) -> Tensor:
        return torch.cat([(x * feature).view(len(x), n, -1).sum(-1) for feature in features], 1)

    G = W.shape[1] // n
    groups = [slice(at, at + G) for at in range(0, W.shape[1], G)]
    A = torch.stack([by_group(f[:, group] @ H[group]) for f in features for group in groups], 1)
    return A, by_group(W @ H)


def _better(A: Tensor, b: Tensor, old: Tensor) -> Tensor:
    """Solve A x = b for rows [R, n]; rows that do not win by it, rounded to f16, keep `old`."""
    diagonal = A.diagonal(dim1=1, dim2=2)
    ridge = 1e-6 * diagonal + torch.finfo(torch.float32).tiny  # what no code of a group depends on stays
    solved = torch.linalg.solve(A + torch.diag_embed(ridge), b + ridge * old).half().float()

    def cost(x: Tensor) -> Tensor:
        return ((x[:, None] @ A)[:, 0] * x - 2 * b * x).sum(1)

    wins = solved.isfinite().all(1) & (cost(solved) < cost(old))
    return torch.where(wins[:, None], solved, old)


def _inverse_factor(gram: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped sum's inverse, [C, C] float32.

    An input that was always 0 says nothing of its column, which is then rounded to nearest.
    """
    if not torch.isfinite(gram).all():
        raise ValueError("has inputs that are NaN or infinite")
    diagonal = gram.diagonal()
    mean = diagonal.mean().item() or 1.0
    silent = diagonal == 0
    damping = DAMPING
    while damping <= _MAX_DAMPING:
        damped = gram.float().clone()
        damped.diagonal().add_(damping * mean + silent * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
        damping *= 4  # too near to singular for float32
    raise ValueError("has inputs so alike that they cannot be told apart: calibrate on another text")
