"""What a benchmarked model is made of: formats of its weights, and bytes and operations per token.

In: a loaded model and the runner it runs on. Out: names and counts. Measures nothing.
"""

from dataclasses import dataclass

from torch import nn

from smollm3.engine.runner import Runner
from smollm3.model.native_runner import NativeRunner
from smollm3.model.smollm3 import SmolLM3DecoderLayer, SmolLM3ForCausalLM
from smollm3.native.library import KIND_BF16
from smollm3.native.matrix import Layout
from smollm3.quantization.bitsandbytes_linear import Linear4bit
from smollm3.quantization.memory import memory_report
from smollm3.quantization.packed import PackedEmbedding, PackedLinear
from smollm3.quantization.quantizer import QuantizedLinear


@dataclass(frozen=True)
class Traffic:
    """What one decoded token reads: `weights` bytes, and `position` bytes per layer and cached position."""

    weights: int
    position: float
    windows: tuple[int, ...]  # per layer: the positions that attend; 0: all

    def cache_bytes(self, positions: float) -> float:
        """Bytes of keys and values that a token after `positions` others reads."""
        return sum(self.position * min(window or positions, positions) for window in self.windows)

    def bytes_per_token(self, context: int, num_new: int) -> int:
        """Bytes that a token reads, on average over `num_new` tokens after `context` ones."""
        return self.weights + round(self.cache_bytes(context + (num_new + 1) / 2))


def traffic(model: SmolLM3ForCausalLM, runner: Runner) -> Traffic:
    """Count what a decoded token makes `runner` read."""
    config = model.config
    layers = [layer for layer in model.model.layers if isinstance(layer, SmolLM3DecoderLayer)]
    windows = tuple(layer.self_attn.window or 0 for layer in layers)
    if isinstance(runner, NativeRunner):
        network = runner.network
        position = network.block_bytes / network.block_size / len(layers)
        return Traffic(network.bytes_per_token, position, windows)
    weights = memory_report(model.model.layers).total + memory_report(model.lm_head).total
    values = 2 * (config.num_key_value_heads or 0) * (config.head_dim or 0)
    return Traffic(weights, values * model.model.norm.weight.element_size(), windows)


def products_per_token(model: SmolLM3ForCausalLM) -> int:
    """Return the multiplications of one token with the matrices of all layers, without the head."""
    linears = (m for m in model.model.layers.modules() if isinstance(m, nn.Linear | QuantizedLinear))
    return sum(m.in_features * m.out_features for m in linears)


def scheme(model: SmolLM3ForCausalLM) -> str:
    """Return the formats of the layers' matrices, the most frequent first: `int4 g64`, `bfloat16`."""
    linears = (m for m in model.model.layers.modules() if isinstance(m, nn.Linear | QuantizedLinear))
    names = [format_name(linear) for linear in linears]
    return ", ".join(sorted(set(names), key=lambda name: (-names.count(name), name)))


def head_scheme(model: SmolLM3ForCausalLM, runner: Runner) -> str:
    """Return the format in which `runner` multiplies the language head."""
    if isinstance(runner, NativeRunner):
        return _layout_name(runner.network.head_layout)
    return format_name(model.lm_head)


def format_name(module: nn.Module | QuantizedLinear) -> str:
    """Name the number format of a linear layer's weights."""
    if isinstance(module, PackedLinear | PackedEmbedding):
        return _layout_name(module.layout)
    if isinstance(module, Linear4bit):
        return "4-bit bitsandbytes" if module.native_refusal() else "nf4 bitsandbytes"
    if isinstance(module, nn.Linear):
        return str(module.weight.dtype).removeprefix("torch.")
    return "int8 bitsandbytes"


def _layout_name(layout: Layout) -> str:
    if layout.kind == KIND_BF16:
        return "bfloat16"
    if layout.table is not None:
        return f"nf4 g{layout.group}"
    name = f"int{layout.bits} g{layout.group}"
    return f"{name} with minimum" if layout.has_min else name
