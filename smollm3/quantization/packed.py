"""Layers over packed weights: what int4, int8 and NF4 become for the native engine.

They stand where nn.Linear and nn.Embedding stood; `weight` holds panels of codes and scales, uint8. The
native engine reads `matrix` directly; calling a layer multiplies through the same kernels, so that both give
the same numbers. On the CPU only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smollm3.errors import DeviceError
from smollm3.native.library import ISA_NAMES, native_status
from smollm3.native.matrix import Layout, Matrix, matmul

Function = Callable[[Tensor], Tensor]


class PackedLinear(nn.Module):
    """y = W x + b with W packed, [out_features, in_features]. Gradients reach x, never W."""

    weight: nn.Parameter  # uint8 [panels, bytes of a panel]
    bias: nn.Parameter | None

    def __init__(self, matrix: Matrix, bias: Tensor | None = None) -> None:
        super().__init__()
        self.layout = matrix.layout
        self.in_features, self.out_features = matrix.cols, matrix.rows
        self.weight = panels(matrix)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def matrix(self) -> Matrix:
        """The weights as the native library reads them; shares their memory."""
        return _matrix(self.layout, self.out_features, self.in_features, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y

    def multiply(self, x: Tensor) -> Tensor:
        """Return W x + b in the dtype of x, without a graph."""
        flat = x.detach().reshape(-1, self.in_features).float().numpy()
        bias = None if self.bias is None else self.bias.detach().float().numpy()
        isa = ISA_NAMES.index(native_status().isa or "portable")
        y = matmul(self.matrix, flat, isa, torch.get_num_threads(), bias)
        return torch.from_numpy(y).to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def dequantize(self) -> Tensor:
        """Return the weights that the packed codes stand for, float32 [out_features, in_features]."""
        return torch.from_numpy(self.matrix.unpack())

    def weight_bytes(self) -> tuple[int, int]:
        """Return the bytes held in codes and in scales, without the bias."""
        return _weight_bytes(self.matrix)

    def _apply(self, fn: Function, recurse: bool = True) -> "PackedLinear":
        _refuse_move(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        bits = 8 * self.weight.nbytes / (self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={bits:.2f}"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return layer.multiply(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.layer.dequantize().to(grad.dtype), None


class PackedEmbedding(nn.Embedding):
    """Token embedding whose rows are unpacked as they are looked up; a tied head shares its `weight`."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype, padding_idx: int | None = None) -> None:
        blank = torch.empty(
            matrix.rows, matrix.cols, device="meta"
        )  # else rows are drawn, by torch's compiler
        super().__init__(matrix.rows, matrix.cols, padding_idx, _weight=blank)
        self.layout = matrix.layout
        self.dtype = dtype  # of the rows that come out
        self.in_features, self.out_features = matrix.cols, matrix.rows
        self.weight = panels(matrix)

    @property
    def matrix(self) -> Matrix:
        """The weights as the native library reads them; shares their memory."""
        return _matrix(self.layout, self.num_embeddings, self.embedding_dim, self.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        matrix, ids = self.matrix, input_ids.flatten().tolist()
        rows = np.empty((len(ids), self.embedding_dim), np.float32)
        for i, row in enumerate(ids):
            rows[i] = matrix.unpack(row, 1)
        return torch.from_numpy(rows).to(self.dtype).reshape(*input_ids.shape, self.embedding_dim)

    def dequantize(self) -> Tensor:
        """Return the rows that the packed codes stand for, float32 [num_embeddings, embedding_dim]."""
        return torch.from_numpy(self.matrix.unpack())

    def weight_bytes(self) -> tuple[int, int]:
        """Return the bytes held in codes and in scales."""
        return _weight_bytes(self.matrix)

    def _apply(self, fn: Function, recurse: bool = True) -> "PackedEmbedding":
        _refuse_move(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self


def panels(matrix: Matrix) -> nn.Parameter:
    """Return a matrix's panels as a parameter [panels, bytes of a panel] that shares their memory."""
    count = -(-matrix.rows // PANEL_ROWS)
    return nn.Parameter(torch.from_numpy(matrix.data).view(count, -1), requires_grad=False)


PANEL_ROWS = 16


def _matrix(layout: Layout, rows: int, cols: int, weight: Tensor) -> Matrix:
    return Matrix(layout, rows, cols, weight.detach().view(-1).numpy())


def _weight_bytes(matrix: Matrix) -> tuple[int, int]:
    codes = -(-matrix.rows // PANEL_ROWS) * PANEL_ROWS * matrix.cols * matrix.layout.bits // 8
    return codes, matrix.nbytes - codes


def _refuse_move(fn: Function) -> None:
    device = fn(torch.empty(0, dtype=torch.uint8)).device
    if device.type != "cpu":
        raise DeviceError(
            f"packed weights run on the CPU and cannot move to {device}: load the model there unquantised or "
            "with a BitsAndBytesConfig"
        )
