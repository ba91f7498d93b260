"""Float weights to the blocks of a GGUF file through the native quantiser: Q4_0 and Q8_0.

In: rows of weights. Out: rows of blocks as bytes, each with the scale that leaves the least squared error
among those tried; plain rounding, which is what llama.cpp does, is one of them. Knows no file.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smollm3.native.codes import unpack_codes
from smollm3.native.quantize import layout_of, quantize

BLOCK = 32  # weights that share a scale in both types
_SCHEMES = {"Q4_0": "int4", "Q8_0": "int8"}


def encode_blocks(weights: Tensor, type_name: str) -> NDArray[np.uint8]:
    """Return float weights [rows, cols] as blocks of `type_name`, uint8 [rows, bytes].

    Raises ValueError for weights that are not finite or too large for f16 scales.
    """
    is_bf16 = weights.dtype == torch.bfloat16
    rows = (weights.contiguous().view(torch.uint16) if is_bf16 else weights.float()).numpy()
    matrix = quantize(rows, layout_of(_SCHEMES[type_name], BLOCK), threads=torch.get_num_threads())
    codes, scales, _ = unpack_codes(matrix)
    codes = codes.reshape(*scales.shape, BLOCK)
    # A Q4_0 byte holds a code of the block's first half and one of its second; Q8_0 is two's complement.
    pairs = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4 if type_name == "Q4_0" else codes ^ 0x80
    blocks = np.concatenate([scales[..., None].view(np.uint8), pairs.astype(np.uint8)], axis=-1)
    return blocks.reshape(len(rows), -1)
