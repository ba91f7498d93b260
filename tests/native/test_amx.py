"""The AMX kernels over emulated tiles: the bits of AVX-512, for every layout and awkward number of tokens.

The tiles' meaning is written out in csrc/simd_amx.h after Intel's manual; no machine with AMX is needed, but
one with AVX-512, whose lanes the rest of the unit uses.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from library_products import LAYOUTS, SIZES, products

from hatch_build import build_library
from smollm3.native import library as native_library
from smollm3.native.library import ISA_NAMES, native_status

ROOT = Path(__file__).resolve().parents[2]
AMX, AVX512 = ISA_NAMES.index("amx"), ISA_NAMES.index("avx512")
HAS_AVX512 = "avx512bf16" in native_status().isas
pytestmark = pytest.mark.xdist_group("amx")


@pytest.mark.skipif(not HAS_AVX512, reason="the unit's lanes need AVX-512")
@pytest.mark.parametrize("tokens", [1, 16, 31, 32, 35, 100])
@pytest.mark.parametrize("name", LAYOUTS)
def test_tiles_give_the_bits_of_avx512(emulated: ctypes.CDLL, name: str, tokens: int) -> None:
    layout = LAYOUTS[name]
    for rows, cols in SIZES:
        if cols % layout.group == 0 and (cols < 4000 or tokens in (32, 35)):
            got = products(emulated, layout, rows, cols, tokens, AMX)
            np.testing.assert_array_equal(got, products(emulated, layout, rows, cols, tokens, AVX512))


@pytest.mark.skipif(not HAS_AVX512, reason="the unit's lanes need AVX-512")
def test_amx_is_chosen_after_its_first_product_was_right(emulated: ctypes.CDLL) -> None:
    assert emulated.sm3_usable_isas() >> AMX == 1
    assert emulated.sm3_amx_missing() == b""


def test_a_wrong_product_keeps_amx_off_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def sm3_usable_isas() -> int:
            return (1 << ISA_NAMES.index("zen4")) - 1  # a processor with AMX is no Zen

        @staticmethod
        def sm3_amx_missing() -> bytes:
            return b"a product through AMX tiles came out wrong"

    monkeypatch.setattr(native_library, "load_library", Library)
    status = native_library.native_status.__wrapped__()
    assert status.available
    assert status.isa == "avx512bf16"
    assert "came out wrong" in status.reason


@pytest.mark.slow
@pytest.mark.skipif(not HAS_AVX512, reason="the units are compiled for x86 only")
@pytest.mark.parametrize("compiler", ["g++", "clang++", "clang++-16"])
def test_compilers_that_are_here_build_it_without_warnings_and_with_its_instructions(
    compiler: str, tmp_path: Path
) -> None:
    path = shutil.which(compiler)
    if path is None:  # nothing to compile with
        return
    target = tmp_path / "libsmollm3.so"
    # gcc 12 warns of variables in its own headers
    own = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"] if compiler == "g++" else []
    build_library(path, ROOT / "csrc", target, ["-Wall", "-Wextra", "-Werror", *own])
    code = subprocess.run(["objdump", "-d", str(target)], capture_output=True, text=True, check=True).stdout
    for instruction in (
        "ldtilecfg",
        "tilezero",
        "tileloadd",
        "tdpbssd",
        "tdpbf16ps",
        "tilestored",
        "tilerelease",
        "{vex} vpdpbusd",
    ):
        assert instruction in code
