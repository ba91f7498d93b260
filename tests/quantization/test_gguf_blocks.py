"""Blocks of the native quantiser: valid to the gguf library, no worse than llama.cpp's own rounding."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from smollm3.checkpoint.gguf_write import encode_plainly
from smollm3.native.quantize import layout_of
from smollm3.native.quantize import quantize as native_quantize
from smollm3.quantization.gguf_blocks import encode_blocks

TYPES = {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q8_0": gguf.GGMLQuantizationType.Q8_0}


def weights(rows: int = 40, cols: int = 192) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, cols, generator=generator) * torch.rand(rows, 1, generator=generator)


def floats(blocks: np.ndarray, name: str) -> Tensor:
    return torch.from_numpy(dequantize(blocks, TYPES[name]))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_hold_what_the_native_matrix_holds(name: str, dtype: torch.dtype) -> None:
    x = weights().to(dtype)
    blocks = encode_blocks(x, name)
    block_bytes = gguf.GGML_QUANT_SIZES[TYPES[name]][1]
    assert blocks.shape == (40, 192 // 32 * block_bytes)
    assert blocks.dtype == np.uint8
    layout = layout_of("int4" if name == "Q4_0" else "int8", 32)
    expected = native_quantize(x.float().numpy(), layout).unpack()
    assert np.array_equal(floats(blocks, name).numpy(), expected)


@pytest.mark.parametrize(("name", "at_most"), [("Q4_0", 0.92), ("Q8_0", 1.0)])
def test_the_error_is_below_that_of_plain_rounding(name: str, at_most: float) -> None:
    x = weights()
    ours, theirs = (floats(encode(x, name), name) for encode in (encode_blocks, encode_plainly))
    assert (ours - x).square().sum() < at_most * (theirs - x).square().sum()
    by_block = [(y - x).square().view(40, -1, 32).sum(-1) for y in (ours, theirs)]
    assert (by_block[0] <= by_block[1] * (1 + 1e-3)).float().mean() > 0.98


@pytest.mark.parametrize("name", TYPES)
def test_plain_rounding_is_the_gguf_librarys(name: str) -> None:
    x = weights()
    assert np.array_equal(encode_plainly(x.half(), name), quantize(x.half().float().numpy(), TYPES[name]))


@pytest.mark.parametrize("encode", [encode_blocks, encode_plainly])
@pytest.mark.parametrize("name", TYPES)
def test_zeros_stay_and_strange_weights_are_refused(encode: object, name: str) -> None:
    assert callable(encode)
    assert not floats(encode(torch.zeros(3, 64), name), name).any()
    for value in (float("nan"), float("inf"), 1e30):
        x = weights()
        x[3, 5] = value
        with pytest.raises(ValueError, match="holds"):
            encode(x, name)
