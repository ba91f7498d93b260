"""Packed matrices against numpy: every layout, instruction set and awkward size."""

import numpy as np
import pytest
from numpy.typing import NDArray

from smollm3.native.library import ISA_NAMES, native_status
from smollm3.native.matrix import KIND_W4, KIND_W6, KIND_W8, Layout, Matrix, from_bf16, matmul, pack

ISAS = native_status().isas
LAYOUTS = {
    "int4-g32": Layout(KIND_W4, 32, zero=8),
    "int4-g64": Layout(KIND_W4, 64, zero=8),
    "int4-g128": Layout(KIND_W4, 128, zero=8),
    "int4-min-g32": Layout(KIND_W4, 32, has_min=True),
    "table-g64": Layout(KIND_W4, 64, table=tuple(range(-127, 113, 15))),
    "int6-g32": Layout(KIND_W6, 32, zero=32),
    "int6-g64": Layout(KIND_W6, 64, zero=32),
    "int6-g128": Layout(KIND_W6, 128, zero=32),
    "int8-g32": Layout(KIND_W8, 32, zero=128),
    "int8-g128": Layout(KIND_W8, 128, zero=128),
}
SIZES = [(16, 128), (1, 128), (37, 384), (100, 1536), (48, 576)]


def make(layout: Layout, rows: int, cols: int) -> tuple[Matrix, NDArray[np.float64]]:
    """A random matrix in `layout` and the weights that it stands for."""
    rng = np.random.default_rng(rows * cols)
    codes = rng.integers(1, 2**layout.bits, (rows, cols)).astype(np.uint8)
    scales = (rng.random((rows, cols // layout.group)) * 0.01).astype(np.float16).astype(np.float32)
    mins = rng.normal(0, 0.1, scales.shape).astype(np.float16).astype(np.float32) if layout.has_min else None
    values = np.array(layout.table)[codes] if layout.table else codes.astype(np.int64) - layout.zero
    weights = values.reshape(rows, -1, layout.group) * scales[..., None].astype(np.float64)
    if mins is not None:
        weights = weights + mins[..., None]
    return pack(layout, codes, scales, mins), weights.reshape(rows, cols)


FOUR_BIT_PEAK = np.float32(120)


def int8_groups(x: NDArray[np.float32], group: int, layout: Layout) -> NDArray[np.float64]:
    """What the kernels see of the activations: int8 with a scale per group, to 120 beside four-bit codes."""
    most = FOUR_BIT_PEAK if layout.kind == KIND_W4 and not layout.table else np.float32(127)
    groups = x.reshape(len(x), -1, group)
    peak = np.abs(groups).max(-1, keepdims=True)
    codes = np.rint(groups * np.divide(most, peak, where=peak > 0, out=np.zeros_like(peak)))
    return (codes.astype(np.float64) * (peak / most)).reshape(x.shape)


def fitting(layout: Layout) -> list[tuple[int, int]]:
    return [size for size in SIZES if size[1] % layout.group == 0]


def test_every_compiled_instruction_set_is_tested_where_the_machine_has_it() -> None:
    status = native_status()
    assert status.available, status.reason
    assert ISAS[0] == "portable"
    assert status.isa == ISAS[-1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_unpacking_gives_the_weights_back(name: str) -> None:
    layout = LAYOUTS[name]
    for rows, cols in fitting(layout):
        matrix, weights = make(layout, rows, cols)
        np.testing.assert_allclose(matrix.unpack(), weights, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(matrix.unpack(rows - 1, 1), matrix.unpack()[-1:])
    with pytest.raises(IndexError, match="rows"):
        matrix.unpack(rows, 1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_products_equal_numpy(name: str, isa: str) -> None:
    layout = LAYOUTS[name]
    for rows, cols in fitting(layout):
        matrix, weights = make(layout, rows, cols)
        rng = np.random.default_rng(7)
        x = rng.normal(size=(33, cols)).astype(np.float32)
        x[5] = 0
        bias = rng.normal(size=rows).astype(np.float32)
        group = 32 if cols % 64 or layout.group % 64 else 64
        expected = int8_groups(x, group, layout) @ weights.T + bias
        got = matmul(matrix, x, ISA_NAMES.index(isa), 2, bias)
        assert np.abs(got - expected).max() <= 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [*LAYOUTS, "bf16"])
def test_a_row_is_the_same_bits_alone_and_in_any_batch(name: str, isa: str) -> None:
    rng = np.random.default_rng(3)
    if name == "bf16":
        matrix = from_bf16(
            (rng.normal(size=(50, 384)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        )
    else:
        matrix, _ = make(LAYOUTS[name], 50, 384)
    x = rng.normal(size=(33, 384)).astype(np.float32)
    together = matmul(matrix, x, ISA_NAMES.index(isa), 2)
    for count in (1, 2, 3, 7, 13):
        alone = matmul(matrix, x[11 : 11 + count], ISA_NAMES.index(isa), 1)
        np.testing.assert_array_equal(alone, together[11 : 11 + count])


@pytest.mark.parametrize("isa", ISAS)
def test_bf16_products_equal_numpy(isa: str) -> None:
    rng = np.random.default_rng(1)
    for rows, cols in SIZES:
        bits = (rng.normal(size=(rows, cols)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        x = rng.integers(-8, 9, (21, cols)).astype(np.float32)  # exact in bf16
        expected = x.astype(np.float64) @ (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64).T
        got = matmul(from_bf16(bits), x, ISA_NAMES.index(isa), 2)
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_infinity_stay_visible_and_outliers_stay_in_their_group(isa: str) -> None:
    matrix, weights = make(LAYOUTS["int4-g64"], 48, 576)
    x = np.ones((3, 576), np.float32)
    x[0, 100], x[1, 3] = np.nan, np.inf
    x[2, 64] = 1000.0
    y = matmul(matrix, x, ISA_NAMES.index(isa))
    assert np.isnan(y[:2]).all()
    expected = int8_groups(x[2:], 64, LAYOUTS["int4-g64"]) @ weights.T
    np.testing.assert_allclose(y[2:], expected, rtol=1e-4, atol=1e-3)
    exact = x[2:].astype(np.float64) @ weights.T  # only the outlier's own group of 64 is rounded coarsely
    assert np.abs(y[2:] - exact).max() <= 64 * np.abs(weights).max() * 1000 / FOUR_BIT_PEAK


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["int4-g32", "int4-g64", "int4-min-g32"])
def test_products_of_the_largest_and_least_codes_are_exact(name: str, isa: str) -> None:
    layout = LAYOUTS[name]
    rng = np.random.default_rng(5)
    ends = np.array([0, 15], np.uint8)[rng.integers(0, 2, (32, 256))]
    scales = np.ones((32, 256 // layout.group), np.float32)
    x = np.where(rng.random((40, 256)) < 0.5, -FOUR_BIT_PEAK, FOUR_BIT_PEAK)
    for codes, tokens in [(ends, x), (np.full_like(ends, 15), np.abs(x)), (0 * ends, -np.abs(x))]:
        matrix = pack(layout, codes, scales, scales if layout.has_min else None)
        weights = codes.astype(np.float64) + layout.has_min - layout.zero
        np.testing.assert_array_equal(matmul(matrix, tokens, ISA_NAMES.index(isa), 2), tokens @ weights.T)


@pytest.mark.skipif("zen4" not in ISAS, reason="needs a processor of AMD with AVX-512")
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.startswith("int4")])
def test_products_by_pairs_have_the_bits_of_plain_products(name: str) -> None:
    matrix, _ = make(LAYOUTS[name], 100, 1536)
    x = np.random.default_rng(2).normal(size=(45, 1536)).astype(np.float32)
    for count in range(1, 46):
        got, plain = (matmul(matrix, x[:count], ISA_NAMES.index(isa), 2) for isa in ("zen4", "avx512"))
        np.testing.assert_array_equal(got, plain)


def test_scales_survive_the_round_trip_through_half_precision() -> None:
    scales = np.array([[6e-8, 1e-7, 6.1e-5, 0.1, 1.0, 1000.0, 65504.0, 0.0]], np.float32)
    codes = np.full((1, 256), 9, np.uint8)
    matrix = pack(Layout(KIND_W4, 32, zero=8), codes, scales)
    expected = scales.astype(np.float16).astype(np.float32).repeat(32, 1)
    np.testing.assert_array_equal(matrix.unpack(), expected)


def test_sizes_that_do_not_fit_are_refused() -> None:
    codes = np.zeros((4, 96), np.uint8)
    with pytest.raises(ValueError, match="groups of 64"):
        pack(Layout(KIND_W4, 64, zero=8), codes, np.zeros((4, 1), np.float32))
    with pytest.raises(ValueError, match="minimums"):
        pack(Layout(KIND_W4, 32, has_min=True), codes, np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="instruction set"):
        matmul(make(LAYOUTS["int4-g32"], 16, 128)[0], np.zeros((1, 128), np.float32), isa=99)
