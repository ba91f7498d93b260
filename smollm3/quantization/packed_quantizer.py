"""Packs a model's weights for the native engine while they stream in, or takes them as they were stored.

In: a PackedConfig, a model on the meta device, tensors one at a time. Out: PackedLinear and PackedEmbedding
in place of the plain layers; norms, biases and the heads of classifiers stay. Knows no file.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from smollm3.errors import CheckpointError, DeviceError, MissingDependencyError, ParameterError
from smollm3.native.library import native_status
from smollm3.native.matrix import Layout, Matrix
from smollm3.native.quantize import ALIGNMENT, Arena, layout_of, packed_size, quantize
from smollm3.quantization.packed import PANEL_ROWS, PackedEmbedding, PackedLinear
from smollm3.quantization.packed_config import PackedConfig
from smollm3.quantization.quantizer import mark_

UNPACKED = ("score", "qa_outputs")  # heads of a few rows
LM_HEAD = "lm_head"


class PackedQuantizer:
    """A Quantizer (see quantizer.py) for one model. `stored`: the checkpoint holds panels, not weights."""

    def __init__(self, config: PackedConfig, *, stored: bool = False) -> None:
        require_native(f"quantization_config={config.scheme!r}")
        self.config = config
        self.stored = stored
        self._layouts: dict[str, Layout] = {}  # of the layers to pack, by name
        self._arena = Arena()

    def prepare_(self, model: nn.Module) -> None:
        """Choose the layers; each is replaced when its weight arrives. ParameterError: groups do not fit."""
        for name, module in model.named_modules():
            if type(module) not in (nn.Linear, nn.Embedding) or name in UNPACKED:
                continue
            is_head = type(module) is nn.Embedding or name == LM_HEAD
            scheme = self.config.head if is_head else self.config.scheme
            if scheme is not None:
                self._layouts[name] = self._layout(name, scheme, module)

    def _layout(self, name: str, scheme: str, module: nn.Module) -> Layout:
        size = self.config.group_size
        _, cols = shape_of(module)
        if cols % size:
            fitting = [str(other) for other in (32, 64) if other < size and cols % other == 0]
            way_out = f"group_size={' or '.join(fitting)}" if fitting else "quantization_config=None"
            raise ParameterError(
                f"group_size={size} does not divide the {cols} columns of {name}: pass {way_out}"
            )
        return layout_of(scheme, size, self.config.symmetric or scheme != "int4")

    def load_(
        self, model: nn.Module, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Take a tensor of the checkpoint if it is a packed layer's weight: round it, or keep its panels."""
        layer, _, part = name.rpartition(".")
        if layer not in self._layouts:
            return False
        module = model.get_submodule(layer)
        if part == "bias":
            return put_bias_(module, name, tensor, dtype)
        if part != "weight":
            return False
        require_cpu(device)
        rows, cols = shape_of(module)
        take = self._read if self.stored else self._round
        replace_(model, layer, take(name, tensor, self._layouts[layer], rows, cols), dtype)
        return True

    def _round(self, name: str, tensor: Tensor, layout: Layout, rows: int, cols: int) -> Matrix:
        if tuple(tensor.shape) != (rows, cols) or not tensor.is_floating_point():
            raise CheckpointError(
                f"{name!r} has the shape {tuple(tensor.shape)} and dtype {tensor.dtype}, its config asks for "
                f"floats of shape {(rows, cols)}"
            )
        is_bf16 = tensor.dtype == torch.bfloat16
        weights = (tensor.contiguous().view(torch.uint16) if is_bf16 else tensor.float()).numpy()
        out = self._arena.take(packed_size(layout, rows, cols))
        try:
            return quantize(weights, layout, threads=torch.get_num_threads(), out=out)
        except ValueError as error:
            raise CheckpointError(f"{name!r} {error}: it cannot be quantised") from None

    def _read(self, name: str, tensor: Tensor, layout: Layout, rows: int, cols: int) -> Matrix:
        size = packed_size(layout, rows, cols)
        count = -(-rows // PANEL_ROWS)
        if tensor.dtype != torch.uint8 or tuple(tensor.shape) != (count, size // count):
            raise CheckpointError(
                f"{name!r} has the shape {tuple(tensor.shape)} and dtype {tensor.dtype}, its "
                f"quantization_config asks for uint8 of {(count, size // count)}: one of the two is damaged"
            )
        data = tensor.reshape(-1).numpy()
        if data.ctypes.data % ALIGNMENT:  # else they stay in the file's pages
            data = self._arena.take(size)
            np.copyto(data, tensor.reshape(-1).numpy())
        return Matrix(layout, rows, cols, data)

    def finish_(self, model: nn.Module) -> None:
        """Let a tied head share the embedding's panels, and mark the model."""
        share_tied_(model)
        mark_(model, self)

    def state_dict(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield what is to be stored: panels under the names of the weights."""
        yield from model.state_dict().items()

    def config_dict(self) -> dict[str, Any]:
        """Return the `quantization_config` of config.json."""
        return self.config.to_dict()


def require_native(what: str) -> None:
    """Raise MissingDependencyError, in one line that says why, where the native library is absent."""
    status = native_status()
    if not status.available:
        raise MissingDependencyError(f"{what} needs the native library: {status.reason}")


def require_cpu(device: torch.device) -> None:
    """Raise DeviceError for any device but the CPU."""
    if device.type != "cpu":
        raise DeviceError(
            f"packed weights run on the CPU, not on {device}: pass device_map='cpu', or a BitsAndBytesConfig"
        )


def shape_of(module: nn.Module) -> tuple[int, int]:
    """Return the rows and columns of a linear layer or an embedding, plain or packed."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    assert isinstance(module, nn.Linear | PackedLinear)
    return module.out_features, module.in_features


def replace_(model: nn.Module, name: str, matrix: Matrix, dtype: torch.dtype) -> None:
    """Put a packed layer in the place of a plain one; a bias that came before it stays."""
    module = model.get_submodule(name)
    packed: nn.Module
    if isinstance(module, nn.Embedding):
        packed = PackedEmbedding(matrix, dtype, module.padding_idx)
    else:
        bias = module.bias
        assert bias is None or isinstance(bias, Tensor)
        packed = PackedLinear(matrix, bias)
    model.set_submodule(name, packed.train(module.training))


def share_tied_(model: nn.Module) -> None:
    """Give a tied language head the embedding's panels."""
    config = getattr(model, "config", None)
    head = getattr(model, LM_HEAD, None)
    if head is None or not getattr(config, "tie_word_embeddings", False):
        return
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    if isinstance(embedding, PackedEmbedding):
        shared = PackedLinear(embedding.matrix, head.bias).train(head.training)
        shared.weight = cast(nn.Parameter, embedding.weight)
        model.set_submodule(LM_HEAD, shared)


def put_bias_(module: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype) -> bool:
    """Give a layer that is packed already its bias; a plain one gets it as any parameter."""
    if not isinstance(module, PackedLinear) or module.bias is None:
        return False
    if tuple(tensor.shape) != (module.out_features,) or not tensor.is_floating_point():
        raise CheckpointError(
            f"{name!r} has the shape {tuple(tensor.shape)} and dtype {tensor.dtype}, its config asks for "
            f"floats of shape {(module.out_features,)}"
        )
    module.bias = nn.Parameter(tensor.to(dtype), requires_grad=False)
    return True
