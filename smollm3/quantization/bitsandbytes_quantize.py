"""Weights to codes and scales through bitsandbytes, a stretch at a time on the CPU.

In: one float matrix on its device. Out: what bitsandbytes itself returns for the whole matrix, to the bit. On
a CPU it makes many copies of what it is given, and freed ones leave holes: short stretches keep both small.
"""

from typing import Any

import torch
from torch import Tensor

from smollm3.errors import ParameterError
from smollm3.quantization.bitsandbytes_library import bitsandbytes
from smollm3.quantization.config import BitsAndBytesConfig

BLOCKSIZE = 64
_STRETCH = 4096 * BLOCKSIZE  # weights; their temporaries stay in the cache
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def quantize_4bit(weight: Tensor, config: BitsAndBytesConfig) -> tuple[Tensor, Any]:
    """Return codes [bytes / storage size, 1] in the config's storage dtype, and bitsandbytes' QuantState."""
    if weight.dtype not in _DTYPES:
        raise ParameterError(f"4-bit codes cannot be made of {weight.dtype}: load with dtype='bfloat16'")
    functional = bitsandbytes().functional
    flat = weight.contiguous().flatten()
    codes = torch.empty((flat.numel() + 1) // 2, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(-(-flat.numel() // BLOCKSIZE), dtype=torch.float32, device=weight.device)
    stretch = _STRETCH if weight.device.type == "cpu" else flat.numel()
    state: Any = None
    for start in range(0, flat.numel(), stretch):
        part, state = functional.quantize_4bit(
            flat[start : start + stretch], blocksize=BLOCKSIZE, quant_type=config.bnb_4bit_quant_type
        )
        codes[start // 2 :][: part.numel()] = part.flatten()
        absmax[start // BLOCKSIZE :][: state.absmax.numel()] = state.absmax
    state.shape, state.absmax = weight.shape, absmax
    if config.bnb_4bit_use_double_quant:
        state.offset = absmax.mean()
        state.absmax, state.state2 = functional.quantize_blockwise(absmax - state.offset, blocksize=256)
        state.nested = True
    return codes.view(config.bnb_4bit_quant_storage).unsqueeze(1), state


@torch.no_grad()
def quantize_8bit(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes int8 [out, in] and the largest magnitude of each row, float32 [out]."""
    functional = bitsandbytes().functional
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    row_scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    stretch = max(1, _STRETCH // weight.shape[1]) if weight.device.type == "cpu" else weight.shape[0]
    for start in range(0, weight.shape[0], stretch):
        part = slice(start, start + stretch)
        codes[part], row_scales[part], _ = functional.int8_vectorwise_quant(weight[part].to(torch.float16))
    return codes, row_scales
