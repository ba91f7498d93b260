"""Runs a GGUF file's blocks as they are: Q4_0, Q4_1 and Q8_0 become packed layers without a second rounding.

In: a model on the meta device, rows of blocks as uint8, one tensor at a time. Out: packed layers in which
every weight has the value that the file gives it; what comes as floats stays plain. Knows no file.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from smollm3.errors import CheckpointError
from smollm3.native.matrix import Layout
from smollm3.native.quantize import Arena, packed_size
from smollm3.native.repack import BLOCK_LAYOUTS, bytes_of_block, pack_blocks
from smollm3.quantization.packed_quantizer import put_bias_, replace_, require_cpu, shape_of, share_tied_
from smollm3.quantization.quantizer import QuantizedLinear, mark_


class BlocksQuantizer:
    """A Quantizer (see quantizer.py) that only packs what is quantised already; saving gives plain floats."""

    def __init__(self) -> None:
        self._layers: set[str] = set()  # that may come in blocks
        self._packed = False
        self._arena = Arena()

    def prepare_(self, model: nn.Module) -> None:
        """Remember the layers; each is replaced when its blocks arrive."""
        self._layers = {
            name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Embedding)
        }

    def load_(
        self, model: nn.Module, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Take a layer's blocks, or the bias of a layer that is packed; leave floats to the loader."""
        layer, _, part = name.rpartition(".")
        if layer not in self._layers:
            return False
        module = model.get_submodule(layer)
        if part == "bias":
            return put_bias_(module, name, tensor, dtype)
        if part != "weight" or tensor.dtype != torch.uint8:
            return False
        require_cpu(device)
        rows, cols = shape_of(module)
        layout = _layout(name, tensor, rows, cols)
        out = self._arena.take(packed_size(layout, rows, cols))
        matrix = pack_blocks(tensor.numpy(), layout, threads=torch.get_num_threads(), out=out)
        replace_(model, layer, matrix, dtype)
        self._packed = True
        return True

    def finish_(self, model: nn.Module) -> None:
        """Let a tied head share the embedding's panels, and mark the model if anything came in blocks."""
        share_tied_(model)
        mark_(model, self if self._packed else None)

    def state_dict(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield plain weights, in the model's dtype: what any program opens."""
        plain: dict[int, Tensor] = {}  # a tied head is one tensor with the embedding
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        for name, tensor in model.state_dict(keep_vars=True).items():
            owner = model.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, QuantizedLinear) and name.endswith(".weight"):
                if id(tensor) not in plain:
                    plain[id(tensor)] = owner.dequantize().to(dtype)
                yield name, plain[id(tensor)]
            else:
                yield name, tensor.detach()

    def config_dict(self) -> dict[str, Any] | None:
        """Return None: plain weights are stored."""
        return None


def _layout(name: str, tensor: Tensor, rows: int, cols: int) -> Layout:
    for layout in BLOCK_LAYOUTS:
        if tuple(tensor.shape) == (rows, cols // 32 * bytes_of_block(layout)) and cols % 32 == 0:
            return layout
    raise CheckpointError(
        f"{name!r} comes in blocks of shape {tuple(tensor.shape)}, which do not make the {rows} x {cols} "
        "weights that its config asks for"
    )
