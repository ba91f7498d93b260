"""bf16 weights on AMX over emulated tiles: exact sums, a bound for the others, the same bits in any company.

The tiles' meaning is written out in csrc/simd_amx.h after Intel's manual; the unit's lanes need AVX-512.
"""

import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import tiny_model

from hatch_build import build_library, find_compiler
from smollm3.engine.runner import Row
from smollm3.model import native_runner
from smollm3.model.native_runner import NativeRunner
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.native import network
from smollm3.native.library import ISA_NAMES, NativeStatus, native_status, open_library
from smollm3.native.matrix import from_bf16

ROOT = Path(__file__).resolve().parents[2]
AMX, AVX512BF16 = ISA_NAMES.index("amx"), ISA_NAMES.index("avx512bf16")
SIZES = [(16, 32), (1, 64), (37, 96), (50, 4224), (100, 160)]  # whole and odd panels, one and two at a time
Bits, Floats = NDArray[np.uint16], NDArray[np.float32]

pytestmark = [
    pytest.mark.xdist_group("amx"),
    pytest.mark.skipif("avx512bf16" not in native_status().isas, reason="the unit's lanes need AVX-512"),
]


def to_bits(x: Floats) -> Bits:
    """The bf16 numbers that lie at or below float32 ones."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def widen(bits: Bits) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def product(
    library: ctypes.CDLL, bits: Bits, x: Floats, isa: int = AMX, threads: int = 2, bias: Floats | None = None
) -> Floats:
    x = np.ascontiguousarray(x)
    out = np.empty((len(x), len(bits)), np.float32)
    matrix = from_bf16(bits)
    c = matrix.describe(bias)
    code = library.sm3_matmul(ctypes.byref(c), x.ctypes.data, len(x), out.ctypes.data, threads, isa)
    assert code == 0, library.sm3_error()
    return out


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 33, 100])
def test_products_equal_numpy_within_the_bound_of_their_sums(emulated: ctypes.CDLL, tokens: int) -> None:
    for rows, cols in SIZES:
        bits, x = to_bits(normal(rows, rows, cols)), widen(to_bits(normal(cols, tokens, cols)))
        bias = normal(1, rows)
        got = product(emulated, bits, x, bias=bias)
        wide, weights = x.astype(np.float64), widen(bits).astype(np.float64)
        expected = wide @ weights.T + bias
        # At most 16 multiply-adds, the sum of two chains, a sum per 32 columns and the bias are rounded.
        size = np.abs(wide) @ np.abs(weights).T + np.abs(bias)
        assert (np.abs(got - expected) <= (18 + cols / 32) * 2.0**-24 * size).all()


def test_sums_that_float32_holds_are_exact(emulated: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    for rows, cols in SIZES:
        weights = rng.integers(-15, 16, (rows, cols)).astype(np.float32)
        x = rng.integers(-100, 101, (33, cols)).astype(np.float32)
        np.testing.assert_array_equal(product(emulated, to_bits(weights), x), x @ weights.T)


def test_a_row_is_the_same_bits_alone_and_in_any_company(emulated: ctypes.CDLL) -> None:
    for rows, cols in [(50, 384), (37, 96)]:
        bits, x = to_bits(normal(2, rows, cols)), normal(3, 100, cols)
        together = product(emulated, bits, x, threads=3)
        for first, count in [(0, 1), (99, 1), (11, 2), (40, 7), (5, 16), (60, 17), (30, 33), (1, 64)]:
            part = product(emulated, bits, x[first : first + count], threads=1)
            np.testing.assert_array_equal(part, together[first : first + count])
        for row in (0, 15, rows - 1):  # nor does it depend on the rows of weights beside it
            alone = product(emulated, bits[row : row + 1], x)
            np.testing.assert_array_equal(alone[:, 0], together[:, row])


def test_tokens_beyond_what_stays_near_are_multiplied_alike(emulated: ctypes.CDLL) -> None:
    bits, x = to_bits(normal(4, 17, 4224)), normal(5, 210, 4224)  # 1 MB holds 112 such tokens
    together = product(emulated, bits, x)
    np.testing.assert_array_equal(product(emulated, bits, x[100:133]), together[100:133])


def test_nan_and_infinity_stay_visible_in_their_own_rows(emulated: ctypes.CDLL) -> None:
    bits, x = to_bits(np.abs(normal(6, 20, 96)) + 0.1), normal(7, 33, 96)
    x[4, 4], x[5, 95], x[6, 0] = np.nan, np.inf, -np.inf
    y = product(emulated, bits, x)
    assert np.isnan(y[4]).all()
    assert (y[5] == np.inf).all()
    assert (y[6] == -np.inf).all()
    assert np.isfinite(np.delete(y, [4, 5, 6], 0)).all()
    bits[3, 7] = 0x7FC0
    y = product(emulated, bits, x)
    assert np.isnan(y[:, 3]).all()
    assert np.isfinite(np.delete(np.delete(y, [4, 5, 6], 0), 3, 1)).all()


def test_denormal_numbers_count_as_zero(emulated: ctypes.CDLL) -> None:
    weights = np.zeros((16, 32), np.uint16)
    weights[:, 0], weights[:, 1] = 0x0001, 0x3F80  # the smallest denormal number and 1
    x = np.zeros((2, 32), np.float32)
    x[:, 0], x[:, 1] = 2.0**120, [2.0**-130, 1.0]
    assert (product(emulated, weights, x) == [[0.0], [1.0]]).all()


def test_columns_that_no_kernel_takes_are_refused(emulated: ctypes.CDLL) -> None:
    x, out = np.zeros((1, 48), np.float32), np.empty((1, 4), np.float32)
    c = from_bf16(np.zeros((4, 48), np.uint16)).describe()
    for isa in range(AMX + 1):
        assert emulated.sm3_matmul(ctypes.byref(c), x.ctypes.data, 1, out.ctypes.data, 1, isa) < 0
        assert b"48 columns" in emulated.sm3_error()


def test_a_whole_model_forced_to_amx_gives_the_same_bits_however_it_is_asked(
    emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "load_library", lambda: emulated)
    monkeypatch.setattr(
        native_runner, "native_status", lambda: NativeStatus(True, "", "amx", ISA_NAMES[: AMX + 1])
    )
    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "head_dim": 16}
    model = tiny_model(SmolLM3ForCausalLM, **sizes, initializer_range=0.1, attention_bias=True, mlp_bias=True)
    model = model.to(torch.bfloat16)
    ids = torch.randint(0, 400, (83,), generator=torch.Generator().manual_seed(0)).tolist()

    whole = NativeRunner(model, isa="amx", threads=1)
    expected = whole.forward([Row(whole.open(100), ids, 0, num_logits=2)])
    mixed = NativeRunner(model, isa="amx", threads=3)
    a, b = mixed.open(100), mixed.open(100)
    mixed.forward([Row(a, ids[:7], 0), Row(b, ids[20:60], 0)])
    mixed.forward([Row(b, ids[:1], 40), Row(a, ids[7:81], 7)])
    one = mixed.forward([Row(b, ids[1:2], 41), Row(a, ids[81:82], 81)])[1]
    two = mixed.forward([Row(a, ids[82:], 82)])[0]
    assert torch.equal(torch.stack([one, two]), expected)

    plain = NativeRunner(model, isa="avx512bf16", threads=2)
    other = plain.forward([Row(plain.open(100), ids, 0, num_logits=2)])
    assert float((other - expected).norm() / other.norm()) < 0.02
    assert not torch.equal(other, expected)  # an order of sums of its own, so the tiles were used


FAULTS = {
    "a product that is wrong": ("chains[i] = tile_flush(", "chains[i] = tile_flush(m == 3 ? 0.0f : "),
    "an order that depends on the company": (
        "total = tile_flush(tile_flush(total)",
        "if (c.bytes[b] > 16) chains[0] += total, total = 0; total = tile_flush(tile_flush(total)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_first_use_finds_faulty_tiles_and_falls_back(name: str, tmp_path: Path) -> None:
    compiler = find_compiler()
    assert compiler is not None
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    header = tmp_path / "csrc" / "simd_amx.h"
    before, after = FAULTS[name]
    assert header.read_text().count(before) == 1
    header.write_text(header.read_text().replace(before, after))
    build_library(compiler, tmp_path / "csrc", tmp_path / "lib.so", ["-DSM3_EMULATED", "-O1"])
    library = open_library(tmp_path / "lib.so")
    assert library.sm3_usable_isas() >> AVX512BF16 & 1
    assert not library.sm3_usable_isas() >> AMX
    assert b"came out wrong" in library.sm3_amx_missing()
