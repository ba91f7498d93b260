"""Products of packed matrices through any build of the library, for tests of emulated instruction sets."""

import ctypes

import numpy as np

from smollm3.native.matrix import KIND_W4, KIND_W6, KIND_W8, Layout, pack

LAYOUTS = {
    "int4-g32": Layout(KIND_W4, 32, zero=8),
    "int4-g64": Layout(KIND_W4, 64, zero=8),
    "int4-g128": Layout(KIND_W4, 128, zero=8),
    "int4-min-g32": Layout(KIND_W4, 32, has_min=True),
    "int4-min-g64": Layout(KIND_W4, 64, has_min=True),
    "nf4-g64": Layout(
        KIND_W4, 64, table=(-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)
    ),
    "int6-g32": Layout(KIND_W6, 32, zero=32),
    "int6-g64": Layout(KIND_W6, 64, zero=32),
    "int6-g128": Layout(KIND_W6, 128, zero=32),
    "int8-g32": Layout(KIND_W8, 32, zero=128),
    "int8-g64": Layout(KIND_W8, 64, zero=128),
    "int8-g128": Layout(KIND_W8, 128, zero=128),
}
SIZES = [
    (16, 128),
    (37, 384),
    (5, 96),
    (50, 4224),
]  # odd rows; columns that only divide by 32; more than a chunk


def products(
    library: ctypes.CDLL, layout: Layout, rows: int, cols: int, tokens: int, isa: int, threads: int = 2
) -> np.ndarray:
    rng = np.random.default_rng(rows * cols)
    codes = rng.integers(0, 2**layout.bits, (rows, cols)).astype(np.uint8)
    scales = (rng.random((rows, cols // layout.group)) * 0.01).astype(np.float32)
    mins = rng.normal(0, 0.1, scales.shape).astype(np.float32) if layout.has_min else None
    matrix = pack(layout, codes, scales, mins)
    x = rng.normal(size=(100, cols)).astype(np.float32)[:tokens].copy()
    x[0, 3] = 1000.0
    bias = rng.normal(size=rows).astype(np.float32)
    out = np.empty((tokens, rows), np.float32)
    c = matrix.describe(bias)
    code = library.sm3_matmul(ctypes.byref(c), x.ctypes.data, tokens, out.ctypes.data, threads, isa)
    assert code == 0, library.sm3_error()
    return out
