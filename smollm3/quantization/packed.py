"""A linear layer over packed weights: what int4, int8 and NF4 become for the native engine.

It stands where nn.Linear stood. The native engine reads `matrix` directly; calling the module multiplies
through the same kernels, so that both give the same numbers.
"""

import numpy as np
import torch
from torch import Tensor, nn

from smollm3.native.library import ISA_NAMES, native_status
from smollm3.native.matrix import Matrix, matmul


class PackedLinear(nn.Module):
    """y = W x + b with W in the native library's layout [out_features, in_features]; CPU, inference only."""

    bias: Tensor | None

    def __init__(self, matrix: Matrix, bias: Tensor | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.in_features, self.out_features = matrix.cols, matrix.rows
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.detach().reshape(-1, self.in_features).float().numpy()
        bias = None if self.bias is None else self.bias.numpy()
        isa = ISA_NAMES.index(native_status().isa or "portable")
        y = matmul(self.matrix, flat, isa, torch.get_num_threads(), bias)
        return torch.from_numpy(y).to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def dequantize(self) -> Tensor:
        """Return the weights that the packed codes stand for, float32 [out_features, in_features]."""
        return torch.from_numpy(self.matrix.unpack())

    def weight_bytes(self) -> tuple[int, int]:
        """Return the bytes of the panels, in which codes and scales lie together, and 0."""
        return self.matrix.nbytes, 0

    def extra_repr(self) -> str:
        bits = 8 * self.matrix.nbytes / (self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={bits:.2f}"


class PackedEmbedding(nn.Module):
    """Token embedding whose rows are unpacked as they are looked up; shares its matrix with a tied head."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = matrix
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = matrix.rows, matrix.cols

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = np.concatenate([self.matrix.unpack(int(i), 1) for i in input_ids.flatten()])
        return torch.from_numpy(rows).to(self.dtype).reshape(*input_ids.shape, self.embedding_dim)
