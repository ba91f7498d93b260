"""The language head as the native engine multiplies it: its own matrix, or beside NF4 layers a copy in int8.

In: a model that the native engine runs. Out: a matrix. bitsandbytes leaves the head in bfloat16, a quarter of
what a token reads; eight bits halve that (docs/decisions/042-nf4-head.md). The model itself stays as it is.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.native.library import load_library
from smollm3.native.matrix import Matrix, from_bf16
from smollm3.native.quantize import layout_of, quantize
from smollm3.quantization.bitsandbytes_linear import Linear4bit


@dataclass(frozen=True)
class _Copy:
    state: tuple[int, int, int]  # of the weight that was rounded
    matrix: Matrix


_copies: weakref.WeakKeyDictionary[nn.Module, _Copy] = weakref.WeakKeyDictionary()


def rounds_head(model: SmolLM3ForCausalLM) -> bool:
    """Whether the head of `model` runs as a copy in int8: bfloat16 beside NF4 layers of bitsandbytes."""
    is_nf4 = any(isinstance(module, Linear4bit) for module in model.model.layers.modules())
    return is_nf4 and type(model.lm_head) is nn.Linear


def rounded_head(model: SmolLM3ForCausalLM) -> Matrix:
    """Return the head of `model` in int8; made once, and again when the weight has changed.

    A head that holds NaN or infinities has no scale: it stays in bfloat16, where they show.
    """
    weight = model.lm_head.weight
    assert isinstance(weight, Tensor)
    copy, state = _copies.get(model.lm_head), _state(weight)
    if copy is None or copy.state != state:
        copy = _copies[model.lm_head] = _Copy(state, _round(weight))
    return copy.matrix


def _state(weight: Tensor) -> tuple[int, int, int]:
    """Where a weight lies, how often torch changed it, and a sum of its bytes for changes through `.data`."""
    words = load_library().sm3_read(weight.data_ptr(), weight.nbytes, torch.get_num_threads())
    return weight.data_ptr(), weight._version, int(words)


def _round(weight: Tensor) -> Matrix:
    bits = weight.detach().contiguous().view(torch.uint16).numpy()
    try:
        # NF4's blocks have at least 64 columns and divide these.
        return quantize(bits, layout_of("int8", 64), threads=torch.get_num_threads())
    except ValueError:
        return from_bf16(bits)
