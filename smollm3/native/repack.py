"""Weights that come quantized, into packed matrices: GGUF blocks, and rows of four-bit codes with scales.

In: numpy arrays as their formats hold them. Out: matrices in the native layout whose codes are the same, and
the codes back. Knows no file and no library that made them.
"""

import ctypes

import numpy as np
from numpy.typing import NDArray

from smollm3.native.library import KIND_W4, KIND_W8, load_library
from smollm3.native.matrix import Layout, Matrix, allocate, blank
from smollm3.native.quantize import packed_size

BLOCK_LAYOUTS = (  # of Q4_0, Q4_1 and Q8_0
    Layout(KIND_W4, 32, zero=8),
    Layout(KIND_W4, 32, has_min=True),
    Layout(KIND_W8, 32, zero=128),
)


def bytes_of_block(layout: Layout) -> int:
    """Return the bytes that 32 weights take in a GGUF file: 18 of Q4_0, 20 of Q4_1, 34 of Q8_0."""
    return 2 + 2 * layout.has_min + 4 * layout.bits


def pack_blocks(
    blocks: NDArray[np.uint8],
    layout: Layout,
    *,
    threads: int = 1,
    out: NDArray[np.uint8] | None = None,
) -> Matrix:
    """Pack rows of GGUF blocks [rows, bytes] in one of BLOCK_LAYOUTS; every weight keeps its value."""
    rows, row_bytes = blocks.shape
    cols = row_bytes // bytes_of_block(layout) * 32
    data = allocate(packed_size(layout, rows, cols)) if out is None else out
    blocks = np.ascontiguousarray(blocks)
    c = blank(layout, rows, cols)
    if load_library().sm3_pack_blocks(ctypes.byref(c), blocks.ctypes.data, data.ctypes.data, threads):
        raise ValueError(f"no GGUF block has the {layout}")
    return Matrix(layout, rows, cols, data)


def pack_nibbles(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    layout: Layout,
    *,
    threads: int = 1,
    out: NDArray[np.uint8] | None = None,
) -> Matrix:
    """Pack four-bit codes [rows, cols / 2], high nibble first, with scales [rows, cols / group]."""
    rows, cols = len(codes), codes.shape[1] * 2
    if scales.shape != (rows, cols // layout.group):
        raise ValueError(
            f"scales of shape {scales.shape} for {rows} x {cols} codes in groups of {layout.group}"
        )
    data = allocate(packed_size(layout, rows, cols)) if out is None else out
    codes, scales = np.ascontiguousarray(codes), np.ascontiguousarray(scales, np.float32)
    c = blank(layout, rows, cols)
    if load_library().sm3_pack_nibbles(
        ctypes.byref(c), codes.ctypes.data, scales.ctypes.data, data.ctypes.data, threads
    ):
        raise ValueError(f"four-bit codes do not fit the {layout}")
    return Matrix(layout, rows, cols, data)


def unpack_nibbles(matrix: Matrix) -> NDArray[np.uint8]:
    """Return the codes that `pack_nibbles` was given, [rows, cols / 2]."""
    codes = np.empty((matrix.rows, matrix.cols // 2), np.uint8)
    if load_library().sm3_unpack_nibbles(ctypes.byref(matrix.describe()), codes.ctypes.data):
        raise ValueError(f"{matrix.layout} holds no four-bit codes")
    return codes
