"""Float weights to packed matrices: the schemes int4, int6, int8 and NF4, and memory for many matrices.

In: weights as numpy arrays, float32 or the bits of bf16. Out: matrices in the native layout, each group with
the scale that leaves the least squared error. Knows no model and no file.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smollm3.native.library import ISA_NAMES, KIND_W4, KIND_W6, KIND_W8, load_library, native_status
from smollm3.native.matrix import Layout, Matrix, allocate, blank

GROUP_SIZES = (32, 64, 128)
ALIGNMENT = 64  # bytes; where a panel starts, one vector load stays in one cache line
# The sixteen NF4 points times NF4_UNIT, in integers: of all multipliers up to 127 this one loses least.
NF4_TABLE = (-112, -78, -59, -44, -32, -21, -10, 0, 9, 18, 28, 38, 49, 63, 81, 112)
NF4_UNIT = 112.03


def layout_of(scheme: str, group_size: int, symmetric: bool = True) -> Layout:
    """Return how codes of a scheme ("int4", "int6", "int8", "nf4") stand for weights."""
    if scheme == "int4":
        return Layout(KIND_W4, group_size, zero=8) if symmetric else Layout(KIND_W4, group_size, has_min=True)
    if scheme == "int6":
        return Layout(KIND_W6, group_size, zero=32)
    if scheme == "int8":
        return Layout(KIND_W8, group_size, zero=128)
    if scheme == "nf4":
        return Layout(KIND_W4, group_size, table=NF4_TABLE)
    raise ValueError(f"no scheme {scheme!r}")


def packed_size(layout: Layout, rows: int, cols: int) -> int:
    """Return the bytes of a packed matrix; ValueError where the groups do not divide its columns."""
    c = blank(layout, rows, cols)
    size = int(load_library().sm3_packed_size(ctypes.byref(c)))
    if size < 0:
        raise ValueError(f"{rows} x {cols} weights cannot be packed in groups of {layout.group}")
    return size


def quantize(
    weights: NDArray[Any],
    layout: Layout,
    *,
    threads: int = 1,
    isa: int | None = None,
    out: NDArray[np.uint8] | None = None,
) -> Matrix:
    """Round weights [rows, cols], float32 or uint16 (bits of bf16), to `layout`.

    The result depends on neither the number of threads nor the instruction set (by default the best).
    Raises ValueError for weights that are not finite or too large for f16 scales.
    """
    if weights.dtype not in (np.float32, np.uint16):
        raise ValueError(f"weights of dtype {weights.dtype}: give float32, or uint16 for the bits of bf16")
    rows, cols = weights.shape
    data = allocate(packed_size(layout, rows, cols)) if out is None else out
    weights = np.ascontiguousarray(weights)
    if isa is None:
        isa = ISA_NAMES.index(native_status().isa or "portable")
    c = blank(layout, rows, cols)
    status = load_library().sm3_quantize(
        ctypes.byref(c), weights.ctypes.data, int(weights.dtype == np.uint16), data.ctypes.data, threads, isa
    )
    if status:
        raise ValueError(_REASONS.get(status, f"no quantiser for {layout}"))
    return Matrix(layout, rows, cols, data)


_REASONS = {1: "holds NaN or infinite weights", 2: "holds weights too large for float16 scales"}


class Arena:
    """Hands out memory for packed matrices side by side in huge pages, so that none is half empty.

    What was handed out keeps its memory alive; the arena itself may go.
    """

    CHUNK = 64 * 2**20

    def __init__(self) -> None:
        self._free: NDArray[np.uint8] = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes, zero, aligned for the kernels."""
        room = -(-size // ALIGNMENT) * ALIGNMENT
        if room > len(self._free):
            self._free = allocate(max(room, self.CHUNK))
        taken, self._free = self._free[:size], self._free[room:]
        return taken
