"""Rounding to nearest: known answers, never worse than plainly, close to the best scale, one result."""

import numpy as np
import pytest
from numpy.typing import NDArray

from smollm3.native.library import ISA_NAMES, native_status
from smollm3.native.matrix import KIND_W4, Layout
from smollm3.native.quantize import (
    ALIGNMENT,
    GROUP_SIZES,
    NF4_TABLE,
    NF4_UNIT,
    Arena,
    layout_of,
    packed_size,
    quantize,
)

Float = NDArray[np.float32]
ENDS = {0: (0, 15), 8: (-8, 7), 32: (-32, 31), 128: (-127, 127)}  # least and greatest code, by that of zero
SCHEMES = {
    f"{scheme}{'' if symmetric else '-min'}-g{size}": layout_of(scheme, size, symmetric)
    for scheme, symmetric in (("int4", True), ("int4", False), ("int6", True), ("int8", True), ("nf4", True))
    for size in GROUP_SIZES
}
NF4 = (  # of the QLoRA paper: quantiles of a normal distribution
    *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)


def weights(rows: int = 33, cols: int = 256, seed: int = 0) -> Float:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(5, (rows, cols)) * 0.03).astype(np.float32)


def groups(x: Float, layout: Layout) -> NDArray[np.float64]:
    return x.astype(np.float64).reshape(len(x), -1, layout.group)


def nearest(x: NDArray[np.float64], layout: Layout) -> NDArray[np.float64]:
    """What codes can say of x in units of the scale."""
    if layout.table:
        table = np.array(layout.table, np.float64)
        return np.asarray(table[np.abs(x[..., None] - table).argmin(-1)])
    low, high = ENDS[layout.zero]
    return np.asarray(np.clip(np.rint(x), low, high))


def plain(x: Float, layout: Layout) -> NDArray[np.float64]:
    """Rounding by the largest magnitude, or between smallest and largest; scales in f16."""
    g = groups(x, layout)
    low = g.min(-1, keepdims=True).astype(np.float16).astype(float) if layout.has_min else np.zeros(1)
    top = layout.table[-1] if layout.table else ENDS[layout.zero][1]
    span = (
        g.max(-1, keepdims=True) - g.min(-1, keepdims=True)
        if layout.has_min
        else np.abs(g).max(-1)[..., None]
    )
    scale = (span / top).astype(np.float16).astype(float)
    return np.asarray(nearest((g - low) / scale, layout) * scale + low)


def error(got: NDArray[np.floating], x: Float, layout: Layout) -> NDArray[np.float64]:
    return np.asarray(((got.reshape(groups(x, layout).shape) - groups(x, layout)) ** 2).sum(-1))


@pytest.mark.parametrize("name", SCHEMES)
def test_no_group_is_worse_than_plain_rounding_and_most_are_better(name: str) -> None:
    layout, x = SCHEMES[name], weights()
    got, expected = error(quantize(x, layout).unpack(), x, layout), error(plain(x, layout), x, layout)
    assert (got <= expected * (1 + 1e-4)).all()
    assert (
        got.sum()
        < expected.sum() * {"i8": 0.96, "i6": 0.96, "i4": 0.85, "n4": 0.92}[name[0] + name.split("-")[0][-1]]
    )


@pytest.mark.parametrize("name", [name for name, layout in SCHEMES.items() if not layout.has_min])
def test_the_scale_is_close_to_the_best_of_all_scales(name: str) -> None:
    layout, x = SCHEMES[name], weights(4)
    g = groups(x, layout)
    top = layout.table[-1] if layout.table else layout.zero - 1
    best = np.full(g.shape[:-1], np.inf)
    for factor in np.concatenate([np.arange(0.6, 1.4, 0.004), -np.arange(0.6, 1.4, 0.004)]):
        scale = np.abs(g).max(-1, keepdims=True) / top * factor
        best = np.minimum(best, ((nearest(g / scale, layout) * scale - g) ** 2).sum(-1))
    assert error(quantize(x, layout).unpack(), x, layout).sum() < 1.03 * best.sum()


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_that_the_scheme_can_say_come_back_exactly(name: str) -> None:
    layout = SCHEMES[name]
    rng = np.random.default_rng(1)
    shape = (20, 256 // layout.group, layout.group)
    points = np.array(layout.table or np.arange(ENDS[layout.zero][0], ENDS[layout.zero][1] + 1))
    units = rng.choice(points, shape)
    units[..., 0], units[..., 1] = points[0], points[-1]  # the whole range is used
    scale = rng.integers(1, 2**10, (*shape[:2], 1)) * 2.0**-14
    low = -scale * 4 if layout.has_min else 0
    x = (units * scale + low).reshape(20, 256).astype(np.float32)
    assert np.array_equal(quantize(x, layout).unpack(), x)


@pytest.mark.parametrize("name", SCHEMES)
def test_one_result_for_every_instruction_set_and_number_of_threads(name: str) -> None:
    layout, x = SCHEMES[name], weights(49)
    x[3], x[5, :64] = 0, 1e-6  # rows without a scale, and with a subnormal one
    expected = quantize(x, layout, isa=0).data
    for isa in native_status().isas:
        assert np.array_equal(quantize(x, layout, isa=ISA_NAMES.index(isa), threads=3).data, expected)


@pytest.mark.parametrize("name", ["int4-g64", "int4-min-g32", "int6-g64", "int8-g128", "nf4-g64"])
def test_bf16_weights_are_the_floats_that_they_are(name: str) -> None:
    bits = (weights().view(np.uint32) >> 16).astype(np.uint16)
    floats = (bits.astype(np.uint32) << 16).view(np.float32)
    layout = SCHEMES[name]
    assert np.array_equal(quantize(bits, layout).data, quantize(floats, layout).data)


@pytest.mark.parametrize("name", SCHEMES)
def test_zeros_and_constants_are_exact(name: str) -> None:
    layout = SCHEMES[name]
    x = np.zeros((5, 128), np.float32)
    assert not quantize(x, layout).unpack().any()
    x[2], x[3] = 0.5, -0.25
    assert np.allclose(quantize(x, layout).unpack(), x, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["int4-g32", "int4-min-g64", "int6-g32", "int8-g64", "nf4-g128"])
def test_weights_of_any_size_keep_their_relative_error(name: str) -> None:
    layout, x = SCHEMES[name], weights()
    usual = error(quantize(x, layout).unpack(), x, layout).sum() / (x**2).sum()
    for size in (0.1, 1e5):
        y = x * np.float32(size)
        got = error(quantize(y, layout).unpack(), y, layout).sum() / (y.astype(np.float64) ** 2).sum()
        assert got < 1.05 * usual


def test_what_cannot_be_quantised_is_refused() -> None:
    for bad, words in ((np.nan, "NaN"), (np.inf, "NaN or infinite"), (1e8, "too large")):
        for name in ("int4-g64", "int4-min-g32", "int6-g64", "int8-g32", "nf4-g64"):
            x = weights()
            x[17, 200] = bad
            with pytest.raises(ValueError, match=words):
                quantize(x, SCHEMES[name], threads=2)
    with pytest.raises(ValueError, match="groups of 64"):
        quantize(weights(cols=96), SCHEMES["int4-g64"])
    with pytest.raises(ValueError, match="no quantiser"):
        quantize(weights(), Layout(KIND_W4, 64, zero=3))
    with pytest.raises(ValueError, match="no quantiser"):
        quantize(weights(), Layout(KIND_W4, 64, table=tuple(reversed(NF4_TABLE))))
    with pytest.raises(ValueError, match="no quantiser"):
        quantize(weights(), SCHEMES["int4-g64"], isa=99)
    with pytest.raises(ValueError, match="dtype float64"):
        quantize(weights().astype(np.float64), SCHEMES["int4-g64"])
    with pytest.raises(ValueError, match="no scheme 'int3'"):
        layout_of("int3", 64)


def test_the_table_is_nf4_in_integers() -> None:
    assert np.array_equal(np.rint(np.array(NF4) * NF4_UNIT), NF4_TABLE)
    assert np.abs(np.array(NF4_TABLE) / NF4_UNIT - NF4).max() < 0.5 / NF4_UNIT


def test_an_arena_hands_out_aligned_memory_that_outlives_it() -> None:
    arena = Arena()
    layout, x = SCHEMES["int4-g32"], weights(17, 96)
    taken = [arena.take(packed_size(layout, 17, 96)) for _ in range(3)]
    big = arena.take(Arena.CHUNK + 1)
    del arena
    assert all(array.ctypes.data % ALIGNMENT == 0 for array in (*taken, big))
    assert not any(array.any() for array in taken)
    matrices = [quantize(x * np.float32(i + 1), layout, out=array) for i, array in enumerate(taken)]
    assert len(big) == Arena.CHUNK + 1
    for i, matrix in enumerate(matrices):
        assert np.array_equal(matrix.data, quantize(x * np.float32(i + 1), layout).data)
