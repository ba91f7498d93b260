"""The AVX-VNNI kernels with their one instruction emulated: the bits of AVX2, in every layout."""

import ctypes

import numpy as np
import pytest
from library_products import LAYOUTS, SIZES, products

from smollm3.native.library import ISA_NAMES, native_status

pytestmark = [
    pytest.mark.xdist_group("amx"),  # whose library it shares
    pytest.mark.skipif("avx2" not in native_status().isas, reason="the unit's lanes need AVX2"),
]


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("name", LAYOUTS)
def test_one_instruction_gives_the_bits_of_three(emulated: ctypes.CDLL, name: str, tokens: int) -> None:
    layout = LAYOUTS[name]
    for rows, cols in SIZES:
        if cols % layout.group == 0:
            one, three = (
                products(emulated, layout, rows, cols, tokens, ISA_NAMES.index(isa))
                for isa in ("avxvnni", "avx2")
            )
            np.testing.assert_array_equal(one, three)
