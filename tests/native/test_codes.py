"""Taking packed matrices apart gives what was packed."""

import numpy as np
import pytest

from smollm3.native.codes import unpack_codes
from smollm3.native.matrix import KIND_W4, KIND_W6, KIND_W8, Layout, from_bf16, pack
from smollm3.native.quantize import layout_of, quantize

LAYOUTS = {
    "int4": Layout(KIND_W4, 32, zero=8),
    "int4 with minimum": Layout(KIND_W4, 64, has_min=True),
    "int6": Layout(KIND_W6, 64, zero=32),
    "int6 in small groups": Layout(KIND_W6, 32, zero=32),
    "int8": Layout(KIND_W8, 128, zero=128),
    "int8 in small groups": Layout(KIND_W8, 32, zero=128),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("rows", "groups"), [(16, 1), (33, 3), (1, 2), (48, 5)])
def test_codes_scales_and_minimums_come_back(name: str, rows: int, groups: int) -> None:
    layout = LAYOUTS[name]
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 2**layout.bits, (rows, groups * layout.group), np.uint8)
    scales = rng.normal(size=(rows, groups)).astype(np.float16)
    mins = rng.normal(size=(rows, groups)).astype(np.float16) if layout.has_min else None
    found = unpack_codes(pack(layout, codes, scales, mins))
    assert np.array_equal(found[0], codes)
    assert np.array_equal(found[1], scales)
    assert (found[2] is None) == (mins is None)
    if mins is not None:
        assert np.array_equal(found[2], mins)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scheme", "symmetric"), [("int4", True), ("int4", False), ("int6", True), ("int8", True)]
)
def test_they_stand_for_the_weights(scheme: str, symmetric: bool) -> None:
    layout = layout_of(scheme, 64, symmetric)
    matrix = quantize(np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32), layout)
    codes, scales, mins = unpack_codes(matrix)
    by_group = codes.reshape(20, 2, 64).astype(np.float32) - layout.zero
    weights = by_group * scales[..., None].astype(np.float32)
    if mins is not None:
        weights += mins[..., None].astype(np.float32)
    assert np.array_equal(weights.reshape(20, 128), matrix.unpack())


def test_bf16_has_no_codes() -> None:
    with pytest.raises(ValueError, match="no codes"):
        unpack_codes(from_bf16(np.zeros((16, 32), np.uint16)))
