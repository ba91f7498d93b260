"""Reads the tensors in which transformers stores a layer quantised by bitsandbytes, and checks every size.

In: a layer's tensors under their names within the layer. Out: codes with bitsandbytes' state. The kernels
trust what they are given, so nothing reaches them that does not fit. Raises CheckpointError.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smollm3.errors import CheckpointError
from smollm3.quantization.bitsandbytes_library import bitsandbytes
from smollm3.quantization.config import QUANT_TYPES

STATE = "weight.quant_state.bitsandbytes__"
NAMES_4BIT = (
    "weight",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    *(STATE + quant_type for quant_type in QUANT_TYPES),
)
NAMES_8BIT = ("weight_format", "weight", "SCB")
_BLOCKSIZES = tuple(2**n for n in range(5, 13))
_DTYPES = ("float32", "bfloat16", "float16")


def missing_4bit(found: Mapping[str, Tensor]) -> list[str]:
    """Return which names a 4-bit layer still lacks."""
    needed = ["weight", "weight.absmax", "weight.quant_map"]
    states = [name for name in found if name.startswith(STATE)]
    if not states:
        return [name for name in needed if name not in found] + [f"{STATE}nf4"]
    if "nested_offset" in _facts(states[0], found[states[0]]):
        needed += ["weight.nested_absmax", "weight.nested_quant_map"]
    return [name for name in needed if name not in found]


def missing_8bit(found: Mapping[str, Tensor]) -> list[str]:
    """Return which names an int8 layer still lacks."""
    return [name for name in NAMES_8BIT if name not in found]


def read_4bit(
    layer: str, found: Mapping[str, Tensor], shape: tuple[int, int], device: torch.device
) -> tuple[Tensor, Any]:
    """Return codes and QuantState on `device` of a layer whose weight is `shape` [out, in]."""
    found = dict(found)
    name = next(name for name in found if name.startswith(STATE))
    facts = _facts(name, found[name])
    quant_type, blocksize = name.removeprefix(STATE), facts.get("blocksize")
    _expect(facts.get("quant_type") == quant_type, layer, f"quant_type {facts.get('quant_type')!r} in {name}")
    _expect(type(blocksize) is int and blocksize in _BLOCKSIZES, layer, f"blocksize {blocksize!r}")
    _expect(facts.get("dtype") in _DTYPES, layer, f"dtype {facts.get('dtype')!r}")
    _expect(
        facts.get("shape") == list(shape), layer, f"shape {facts.get('shape')}, its config asks for {shape}"
    )
    assert isinstance(blocksize, int)
    size = math.prod(shape)
    num_blocks = -(-size // blocksize)
    num_bytes = found["weight"].nbytes
    _expect(num_bytes == (size + 1) // 2, layer, f"{num_bytes} bytes of codes for {size} weights")
    found["weight.absmax"] = _in_stored_order(found["weight.absmax"])
    nested = "nested_offset" in facts
    _expect(
        nested or "weight.nested_absmax" not in found, layer, "nested scales that its state does not know of"
    )
    _check_scales(layer, "weight.absmax", found["weight.absmax"], num_blocks, coded=nested)
    table = bitsandbytes().functional.get_4bit_type(quant_type, device="cpu")
    _check_table(layer, "weight.quant_map", found["weight.quant_map"], 16, table)
    if nested:
        _expect(
            facts.get("nested_blocksize") == 256, layer, f"nested_blocksize {facts.get('nested_blocksize')!r}"
        )
        offset = facts["nested_offset"]
        _expect(isinstance(offset, float | int) and math.isfinite(offset), layer, f"nested_offset {offset!r}")
        _expect(facts.get("nested_dtype") in _DTYPES, layer, f"nested_dtype {facts.get('nested_dtype')!r}")
        num_outer = -(-num_blocks // 256)
        _check_scales(layer, "weight.nested_absmax", found["weight.nested_absmax"], num_outer, coded=False)
        _check_table(layer, "weight.nested_quant_map", found["weight.nested_quant_map"], 256, None)
    codes = found.pop("weight").to(device).reshape(-1, 1)
    stats = {name.removeprefix("weight."): tensor for name, tensor in found.items()}
    return codes, bitsandbytes().functional.QuantState.from_dict(qs_dict=stats, device=device)


def read_8bit(
    layer: str, found: Mapping[str, Tensor], shape: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return codes int8 [out, in] and scales float32 [out] on `device`."""
    codes, row_scales = found["weight"], found["SCB"]
    _expect(codes.dtype == torch.int8, layer, f"weights of dtype {codes.dtype} where int8 belongs")
    _expect(tuple(codes.shape) == shape, layer, f"shape {tuple(codes.shape)}, its config asks for {shape}")
    _check_scales(layer, "SCB", row_scales, shape[0], coded=False)
    order = found["weight_format"].flatten().tolist()
    _expect(order == [0], layer, f"weight_format {order} where only 0 (one row after another) is known")
    return codes.to(device), row_scales.reshape(-1).to(device)


def _in_stored_order(absmax: Tensor) -> Tensor:
    """Undo a slip of transformers: saved after a pass on an AVX512-BF16 CPU, the scales [out, in / blocksize]
    stand transposed and in bfloat16. Scales in their right order have one dimension."""
    return absmax.t().flatten().float() if absmax.dim() == 2 and absmax.dtype == torch.bfloat16 else absmax


def _facts(name: str, packed: Tensor) -> dict[str, Any]:
    try:
        facts = (
            json.loads(bytes(packed.flatten().to(torch.uint8).tolist())) if packed.numel() < 4096 else None
        )
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{name} of a quantised layer is not a JSON object: the checkpoint is damaged")
    return facts


def _check_scales(layer: str, name: str, scales: Tensor, count: int, *, coded: bool) -> None:
    wanted = torch.uint8 if coded else torch.float32
    _expect(scales.numel() == count, layer, f"{scales.numel()} values in {name} where {count} belong")
    _expect(scales.dtype == wanted, layer, f"{name} of dtype {scales.dtype} where {wanted} belongs")
    _expect(coded or bool(torch.isfinite(scales).all()), layer, f"{name} with values that are not finite")


def _check_table(layer: str, name: str, table: Tensor, count: int, known: Tensor | None) -> None:
    _check_scales(layer, name, table, count, coded=False)
    # The kernels have the table built in: another one in the file would be passed over in silence.
    same = known is None or torch.allclose(table.cpu(), known.to(table.dtype), atol=1e-6)
    _expect(same, layer, f"a {name} that is not bitsandbytes' own")


def _expect(holds: bool, layer: str, found: str) -> None:
    if not holds:
        raise CheckpointError(
            f"the quantised layer {layer!r} has {found}: the checkpoint is damaged or not its config's"
        )
