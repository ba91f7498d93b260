"""GPTQ for one matrix: codes chosen so that the layer's outputs, not its weights, stay close.

In: weights and the sum X^T X over the layer's inputs. Out: a packed matrix. Columns are rounded one after the
other, and what each rounding did to the outputs is taken up by the columns still to come (Frantar et al.,
2022, arXiv:2210.17323). Knows no model. Shapes: R rows (outputs), C columns (inputs), G columns of a group.
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


def gptq(weights: Tensor, gram: Tensor, layout: Layout, *, out: NDArray[np.uint8] | None = None) -> Matrix:
    """Round weights [R, C] to `layout`, int4 with or without minimums, for inputs with X^T X = `gram` [C, C].

    Each group's scale (and minimum) is the native quantiser's for the group as it stands when its turn comes.
    Raises ValueError for weights or sums that are not finite, or too large for f16 scales.
    """
    if layout.bits != 4 or layout.table is not None:
        raise ValueError(f"GPTQ rounds to int4, not to {layout}")
    W, G = weights.detach().float().clone(), layout.group
    U = _inverse_factor(gram)
    R, C = W.shape
    codes = np.empty((R, C), np.uint8)
    scales, mins = (np.empty((R, C // G), np.float16) for _ in range(2))
    for group, begin in enumerate(range(0, C, G)):
        end = begin + G
        _, scale, low = unpack_codes(
            quantize(W[:, begin:end].numpy(), layout, threads=torch.get_num_threads())
        )
        scales[:, group : group + 1] = scale
        mins[:, group : group + 1] = 0 if low is None else low
        chosen, errors = _round_group(
            W[:, begin:end], U[begin:end, begin:end], scales[:, group], mins[:, group], layout.zero
        )
        codes[:, begin:end] = chosen.numpy()
        W[:, end:] -= errors @ U[begin:end, end:]
    return pack(layout, codes, scales, mins if layout.has_min else None, out)


def _round_group(
    W: Tensor, U: Tensor, scales: NDArray[np.float16], mins: NDArray[np.float16], zero: int
) -> tuple[Tensor, Tensor]:
    """Round W [R, G] column by column; return codes [R, G] and errors [R, G] for the columns behind."""
    rest = W.T.contiguous()  # [G, R]: a column lies in one piece
    scale, low = torch.from_numpy(scales.astype(np.float32)), torch.from_numpy(mins.astype(np.float32))
    inverse = torch.where(scale != 0, 1 / scale, 0)
    codes, errors = torch.empty_like(rest), torch.empty_like(rest)
    for i, w in enumerate(rest):
        code = ((w - low) * inverse).round_().add_(zero).clamp_(0, 15)
        error = (w - (code - zero) * scale - low) / U[i, i]
        rest[i + 1 :].addr_(U[i, i + 1 :], error, alpha=-1)
        codes[i], errors[i] = code, error
    return codes.T.to(torch.uint8), errors.T


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
