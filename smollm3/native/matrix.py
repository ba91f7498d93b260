"""Weight matrices as the native library holds them: packed panels of int4, int6, int8, NF4, or bf16 in place.

Float weights or codes with scales come in as numpy arrays; what comes out owns its memory and knows how to
describe itself in C. Knows no model and no file.
"""

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smollm3.native.library import KIND_BF16, KIND_W4, KIND_W6, KIND_W8, CMatrix, load_library

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How codes stand for weights: w = scale * (code - zero) + minimum, or scale * table[code]."""

    kind: int
    group: int = 64
    zero: int = 0
    has_min: bool = False
    table: tuple[int, ...] | None = None

    @property
    def bits(self) -> int:
        """Bits of a code, or of a bf16 weight."""
        return {KIND_W4: 4, KIND_W6: 6, KIND_W8: 8, KIND_BF16: 16}[self.kind]


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [rows, cols] in the native layout; `data` keeps its memory alive."""

    layout: Layout
    rows: int
    cols: int
    data: Array  # uint8 panels, or uint16 [rows, cols] for bf16

    @property
    def nbytes(self) -> int:
        """Bytes that a product with one token reads."""
        return int(self.data.nbytes)

    def describe(self, bias: Array | None = None) -> CMatrix:
        """Return the C description; `bias` is float32 [rows] and must outlive it."""
        c = blank(self.layout, self.rows, self.cols)
        c.data = self.data.ctypes.data
        c.bias = None if bias is None else bias.ctypes.data
        return c

    def unpack(self, first: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """Return the weights that rows [first, first + count) stand for, float32 [count, cols]."""
        count = self.rows - first if count is None else count
        out = np.empty((count, self.cols), np.float32)
        if load_library().sm3_unpack_rows(ctypes.byref(self.describe()), first, count, out.ctypes.data):
            raise IndexError(f"rows {first} to {first + count} of a matrix with {self.rows} rows")
        return out


def blank(layout: Layout, rows: int, cols: int) -> CMatrix:
    """Return the C description of a matrix without data."""
    c = CMatrix(kind=layout.kind, group=layout.group, zero=layout.zero, rows=rows, cols=cols)
    c.has_min, c.has_table = int(layout.has_min), int(layout.table is not None)
    for i, value in enumerate(layout.table or ()):
        c.table[i] = value
    return c


def allocate(size: int) -> NDArray[np.uint8]:
    """Return `size` zeroed bytes in huge pages where the system gives them."""
    library = load_library()
    address = library.sm3_alloc(size)
    if not address:
        raise MemoryError(f"no memory for {size} bytes of weights")
    array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    owner = array.base  # the ctypes buffer: lives as long as any view of it
    weakref.finalize(owner, library.sm3_free, address, size)
    return array


def pack(
    layout: Layout,
    codes: NDArray[np.uint8],
    scales: Array,
    mins: Array | None = None,
    out: Array | None = None,
) -> Matrix:
    """Pack codes [rows, cols] with scales (and minimums) [rows, cols / group] into panels."""
    rows, cols = codes.shape
    c = blank(layout, rows, cols)
    library = load_library()
    size = int(library.sm3_packed_size(ctypes.byref(c)))
    if size < 0:
        raise ValueError(f"{rows} x {cols} weights cannot be packed in groups of {layout.group}")
    data = allocate(size) if out is None else out
    codes = np.ascontiguousarray(codes, np.uint8)
    scales = np.ascontiguousarray(scales, np.float32)
    low = None if mins is None else np.ascontiguousarray(mins, np.float32)
    pointer = None if low is None else low.ctypes.data
    if library.sm3_pack(ctypes.byref(c), codes.ctypes.data, scales.ctypes.data, pointer, data.ctypes.data):
        raise ValueError(f"a layout with minimums needs them: {layout}")
    return Matrix(layout, rows, cols, data)


def from_bf16(bits: NDArray[np.uint16]) -> Matrix:
    """Wrap bf16 weights [rows, cols], given as their bits, without a copy."""
    rows, cols = bits.shape
    return Matrix(Layout(KIND_BF16), rows, cols, np.ascontiguousarray(bits))


def matmul(
    matrix: Matrix, x: Array, isa: int, threads: int = 1, bias: Array | None = None
) -> NDArray[np.float32]:
    """Return x W^T + bias through the kernels of one instruction set, float32 [len(x), rows]."""
    x = np.ascontiguousarray(x, np.float32)
    out = np.empty((len(x), matrix.rows), np.float32)
    c = matrix.describe(bias)
    library = load_library()
    if library.sm3_matmul(ctypes.byref(c), x.ctypes.data, len(x), out.ctypes.data, threads, isa):
        raise ValueError(library.sm3_error().decode())
    return out


__all__ = ["KIND_W4", "KIND_W6", "KIND_W8", "Layout", "Matrix", "allocate", "from_bf16", "matmul", "pack"]
