"""Linear layers over bitsandbytes' codes: NF4 and FP4 in blocks, int8 with a scale per row.

In: codes and scales, fresh or from a checkpoint. Out: products, the weights they stand for, and the tensors
under the names in which transformers stores them. Knows no model and no file.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smollm3.native.matrix import Layout, Matrix
from smollm3.native.quantize import GROUP_SIZES, NF4_UNIT, Arena, layout_of, packed_size
from smollm3.native.repack import pack_nibbles, unpack_nibbles
from smollm3.quantization.bitsandbytes_library import bitsandbytes, has_fused_cpu_kernel


class CodedLinear(nn.Module):
    """What both widths share: where nn.Linear stood, its bias, and scales that no cast may touch."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight = nn.Parameter(plain.weight.detach(), requires_grad=False)
        self.bias = None if plain.bias is None else nn.Parameter(plain.bias.detach(), requires_grad=False)

    def weight_bytes(self) -> tuple[int, int]:
        """Return the bytes held in codes and in scales, without the bias."""
        return self.weight.nbytes, sum(buffer.nbytes for buffer in self.buffers(recurse=False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CodedLinear":
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if tensor is self.bias or moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class Linear4bit(CodedLinear):
    """y = W x + b with W in NF4 or FP4, computed in `compute_dtype`.

    On a CPU with AVX512-BF16 the codes are put into the order of bitsandbytes' fused kernel at the first
    inference, and back whenever they are stored, moved or differentiated through. That kernel works in
    bfloat16 whatever the compute dtype. For the native engine the codes are put into its order, and back at
    the next use of the layer itself: there is only ever one copy.
    """

    absmax: Tensor | None
    quant_map: Tensor | None
    nested_absmax: Tensor | None
    nested_quant_map: Tensor | None
    fused_absmax: Tensor | None

    def __init__(self, plain: nn.Linear, compute_dtype: torch.dtype) -> None:
        super().__init__(plain)
        self.compute_dtype = compute_dtype
        for name in ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "fused_absmax"):
            self.register_buffer(name, None, persistent=False)
        self._state: Any = None  # bitsandbytes' QuantState over the buffers, in the stored order
        self._fused: Any = None  # the same for the fused kernel, while the codes are in its order
        self._native: tuple[Layout, torch.dtype] | None = None  # while they are in the native engine's order

    def fill_(self, codes: Tensor, state: Any) -> None:
        """Take codes [ceil(out * in / 2) bytes, 1] with bitsandbytes' QuantState."""
        self.weight = nn.Parameter(codes, requires_grad=False)
        self._state, self._fused, self._native, self.fused_absmax = state, None, None, None
        self.absmax, self.quant_map = state.absmax, state.code
        if state.nested:
            self.nested_absmax, self.nested_quant_map = state.state2.absmax, state.state2.code

    def forward(self, x: Tensor) -> Tensor:
        if self.training or x.requires_grad or self._native is not None:
            self._store_order_()  # the fused kernel has no backward
        if not (self.training or x.requires_grad) and self._fused is None and x.device.type == "cpu":
            self._fused_order_()
        a = x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        if self.in_features % self._state.blocksize:
            # Blocks run on from row to row, and bitsandbytes' products lose their place in them.
            return nn.functional.linear(a, self.dequantize().to(a.dtype), bias).to(x.dtype)
        state = self._state if self._fused is None else self._fused
        y: Tensor = bitsandbytes().matmul_4bit(a, self.weight, quant_state=state, bias=bias)
        return y.to(x.dtype)

    @torch.no_grad()
    def dequantize(self) -> Tensor:
        """Return the weights that the codes stand for, [out_features, in_features]."""
        codes, state = self._stored_codes(), copy.copy(self._state)
        state.shape = torch.Size((1, 2 * codes.nbytes))  # one long row: no block can cross into another
        flat: Tensor = bitsandbytes().functional.dequantize_4bit(codes, state).flatten()
        size = self.out_features * self.in_features
        return flat[:size].view(self.out_features, self.in_features)

    def native_refusal(self) -> str | None:
        """Return why the native engine cannot run these codes, or None when it can."""
        if self._state is None or self._state.quant_type != "nf4":
            return "not NF4"
        if self.weight.device.type != "cpu":
            return f"on {self.weight.device}"
        if self._state.blocksize not in GROUP_SIZES or self.in_features % self._state.blocksize:
            return f"{self.in_features} columns in blocks of {self._state.blocksize}"
        return None

    @torch.no_grad()
    def native_matrix(self, arena: Arena | None = None) -> Matrix:
        """Put the codes into the native engine's order, in memory of `arena`, and return them."""
        if self._native is None:
            self._store_order_()
            layout = layout_of("nf4", self._state.blocksize)
            codes = self.weight.view(torch.uint8).reshape(self.out_features, -1).numpy()
            scales = block_scales(self._state).reshape(self.out_features, -1) / NF4_UNIT
            size = packed_size(layout, self.out_features, self.in_features)
            panels = (Arena() if arena is None else arena).take(size)
            pack_nibbles(codes, scales.numpy(), layout, threads=torch.get_num_threads(), out=panels)
            self._native = layout, self.weight.dtype
            self.weight = nn.Parameter(torch.from_numpy(panels), requires_grad=False)
        return Matrix(self._native[0], self.out_features, self.in_features, self.weight.detach().numpy())

    def _fused_order_(self) -> None:
        if not has_fused_cpu_kernel(self.out_features, self.in_features, self._state.blocksize):
            return
        # The conversion overwrites its state: scales would lose precision, and their order when stored.
        convert = bitsandbytes().functional._convert_weight_packed_for_cpu
        codes, self._fused = convert(self.weight.detach(), copy.copy(self._state))
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.fused_absmax = self._fused.absmax

    def _store_order_(self) -> None:
        if self._fused is not None or self._native is not None:
            self.weight = nn.Parameter(self._stored_codes(), requires_grad=False)
            self._fused = self._native = self.fused_absmax = None

    def _stored_codes(self) -> Tensor:
        if self._native is not None:
            codes: Tensor = torch.from_numpy(unpack_nibbles(self.native_matrix())).flatten()
            return codes.view(self._native[1]).reshape(-1, 1)
        if self._fused is None:
            return self.weight.detach()
        state = copy.copy(self._fused)
        state.original_nested = False  # only the codes are of interest: the scales were kept
        codes, _ = bitsandbytes().functional._convert_weight_packed_for_cpu_inverse(
            self.weight.detach(), state
        )
        return codes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linear4bit":
        self._store_order_()
        super()._apply(fn, recurse)
        if self._state is not None:
            state = self._state = copy.copy(self._state)
            state.absmax, state.code = self.absmax, self.quant_map
            if state.nested:
                state.state2 = copy.copy(state.state2)
                state.state2.absmax, state.state2.code = self.nested_absmax, self.nested_quant_map
                state.offset = state.offset.to(self.weight.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._state is None:
            return
        destination[f"{prefix}weight"] = self._stored_codes()
        for name, tensor in self._state.as_dict(packed=True).items():
            # The tables are shared between layers; a file of tensors wants each on its own.
            destination[f"{prefix}weight.{name}"] = tensor.clone() if name.endswith("quant_map") else tensor


def block_scales(state: Any) -> Tensor:
    """Return the scale of each block, float32, from scales that may be codes themselves."""
    if not state.nested:
        scales: Tensor = state.absmax.float()
        return scales
    scales = bitsandbytes().functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return scales.float()


class Linear8bit(CodedLinear):
    """y = W x + b with W in int8 [out, in] and `SCB`, the largest magnitude of each row (LLM.int8)."""

    SCB: Tensor | None

    def __init__(self, plain: nn.Linear, threshold: float) -> None:
        super().__init__(plain)
        self.threshold = threshold
        self.register_buffer("SCB", None, persistent=False)

    def fill_(self, codes: Tensor, row_scales: Tensor) -> None:
        """Take codes int8 [out, in] and scales float32 [out]."""
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.SCB = row_scales

    def forward(self, x: Tensor) -> Tensor:
        return _int8_product(self, x, self.weight, self.SCB)

    def dequantize(self) -> Tensor:
        """Return the weights that the codes stand for, float32 [out_features, in_features]."""
        weight: Tensor = bitsandbytes().functional.int8_vectorwise_dequant(self.weight.detach(), self.SCB)
        return weight

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.SCB is not None:
            destination[f"{prefix}SCB"] = self.SCB
            destination[f"{prefix}weight_format"] = torch.tensor(
                0, dtype=torch.uint8
            )  # rows, one after another


class Linear8bitFloat(nn.Linear):
    """y = W x + b in int8 over float weights, which are quantised anew in each pass and can be trained."""

    def __init__(self, plain: nn.Linear, threshold: float) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return _int8_product(self, x, self.weight, None)


def _int8_product(layer: Any, x: Tensor, weight: Tensor, row_scales: Tensor | None) -> Tensor:
    """Multiply in int8; without `row_scales` the weight is float and quantised here."""
    library = bitsandbytes()
    weight = weight if torch.is_grad_enabled() else weight.detach()
    state = library.MatmulLtState()
    state.threshold = layer.threshold
    state.is_training = layer.training or weight.requires_grad  # on a CPU only this way has a backward
    state.has_fp16_weights = row_scales is None
    if row_scales is not None:
        state.CB, state.SCB, state.use_pool = weight, row_scales, layer.threshold > 0
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    y: Tensor = library.matmul(x, weight, bias=bias, state=state)
    return y
