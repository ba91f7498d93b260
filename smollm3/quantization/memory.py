"""How many bytes a model's weights take, by kind, and how many they would take unquantised.

In: any model, quantised or not. Out: counts, and one line to print.
"""

from dataclasses import dataclass

import torch
from torch import nn

from smollm3.quantization.quantizer import QuantizedLinear


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of a model's weights. `before` is what the same model takes with every weight in its dtype."""

    quantized: int
    scales: int
    unquantized: int
    before: int

    @property
    def total(self) -> int:
        """Bytes of all kinds together."""
        return self.quantized + self.scales + self.unquantized

    def __str__(self) -> str:
        kinds = (
            f"{_size(self.quantized)} of quantised weights, {_size(self.scales)} of scales, "
            f"{_size(self.unquantized)} unquantised"
        )
        return f"{_size(self.total)} ({kinds}); {_size(self.before)} before"


def memory_report(model: nn.Module, dtype: torch.dtype | None = None) -> MemoryReport:
    """Count the bytes of a model's weights; shared ones once.

    Args:
        dtype: of the weights before quantisation; by default the dtype of what was left unquantised.
    """
    quantized = scales = unquantized = before = 0
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, QuantizedLinear) and id(getattr(module, "weight", None)) not in inside:
            codes, extra = module.weight_bytes()
            quantized, scales = quantized + codes, scales + extra
            before += module.in_features * module.out_features
            bias = getattr(module, "bias", None)
            inside |= {id(t) for t in (*module.parameters(), *module.buffers()) if t is not bias}
    rest = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in inside}
    unquantized = sum(tensor.nbytes for tensor in rest.values())
    if dtype is None:
        dtype = next((t.dtype for t in rest.values() if t.is_floating_point()), torch.float32)
    return MemoryReport(quantized, scales, unquantized, before * dtype.itemsize + unquantized)


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} B"
