"""The codes and scales of a packed matrix, taken apart again: the inverse of `matrix.pack`.

In: a matrix in panels of int4, int6, int8 or NF4. Out: numpy arrays by rows. Knows no model and no file.
"""

import numpy as np
from numpy.typing import NDArray

from smollm3.native.library import KIND_BF16
from smollm3.native.matrix import Matrix

PANEL_ROWS, ROW_COLS = 16, 4  # a kernel reads four columns of sixteen rows at a time
HEAD_ALIGNMENT = 64  # bytes, to which a panel's scales are filled up


def unpack_codes(
    matrix: Matrix,
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16] | None]:
    """Return codes [rows, cols], scales [rows, cols / group] and minimums of that shape, or None.

    Raises ValueError for bf16, which has no codes.
    """
    layout, rows, cols = matrix.layout, matrix.rows, matrix.cols
    if layout.kind == KIND_BF16:
        raise ValueError("bf16 weights have no codes")
    panels, groups = -(-rows // PANEL_ROWS), cols // layout.group
    data = matrix.data.reshape(panels, -1)
    numbers = groups * (1 + layout.has_min)
    head_bytes = numbers * PANEL_ROWS * 2
    head = np.ascontiguousarray(data[:, :head_bytes]).view(np.float16)
    head = head.reshape(panels, numbers, PANEL_ROWS).transpose(0, 2, 1).reshape(-1, numbers)[:rows]
    body = data[:, -(-head_bytes // HEAD_ALIGNMENT) * HEAD_ALIGNMENT :]
    quads: NDArray[np.uint8]
    if layout.bits == 6:
        parts = body.reshape(panels, -1, 3, 1, PANEL_ROWS, ROW_COLS)
        low, tops = _nibbles(parts[:, :, :2]), parts[:, :, 2:]
        spread = np.concatenate([tops << 4, tops << 2, tops, tops >> 2], axis=3)
        quads = low | spread.reshape(low.shape) & np.uint8(0x30)
    elif layout.bits == 4:
        quads = _nibbles(body.reshape(panels, -1, 1, PANEL_ROWS, ROW_COLS))
    else:
        quads = body.reshape(panels, -1, PANEL_ROWS, ROW_COLS)
    codes = np.moveaxis(quads, -2, 1).reshape(-1, cols)[:rows]
    mins = np.ascontiguousarray(head[:, groups:]) if layout.has_min else None
    return codes, np.ascontiguousarray(head[:, :groups]), mins


def _nibbles(pairs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take bytes [..., 1, 16, 4] apart into [..., 2, 16, 4]: the low nibbles, then the high ones."""
    return np.concatenate([pairs & 15, pairs >> 4], axis=-3)
