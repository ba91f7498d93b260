"""GPTQ for a whole model: layer after layer, each on what the packed layers before it make of a text.

In: a float model on the CPU, a PackedConfig for int4, windows of token ids. Out: the same model with packed
layers. At a time there is one layer in float32, its sums X^T X, and the hidden states of the windows. Knows
no text and no file; a decoder layer is whatever `base_model.layers` holds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from smollm3.checkpoint.progress import progress
from smollm3.errors import CheckpointError, ParameterError
from smollm3.native.matrix import Layout
from smollm3.native.quantize import Arena, layout_of, packed_size
from smollm3.quantization.gptq import gptq
from smollm3.quantization.packed_config import PackedConfig
from smollm3.quantization.packed_quantizer import LM_HEAD, PackedQuantizer, replace_, require_cpu


class _Stopped(Exception):  # noqa: N818
    """Ends a forward pass at the first layer, with what that layer was called with."""


def check_gptq(config: PackedConfig) -> None:
    """Raise ParameterError for a scheme that GPTQ does not round to."""
    if config.scheme != "int4":
        raise ParameterError(f"GPTQ rounds to int4, not to {config.scheme}: round that to nearest")


@torch.no_grad()
def gptq_(model: Any, config: PackedConfig, windows: Sequence[Tensor]) -> None:
    """Pack `model` in place: decoder layers by GPTQ on `windows`, the embedding and the head to nearest.

    Args:
        windows: int64 [B, T] each, all of one shape.

    Raises:
        ParameterError: another scheme than int4, groups that do not fit, no windows.
        CheckpointError: weights, or hidden states, that are not finite.
        DeviceError: the model is not on the CPU.
    """
    check_gptq(config)
    if not windows:
        raise ParameterError("GPTQ needs token ids to calibrate on: give a longer text")
    require_cpu(model.device)
    quantizer, dtype = PackedQuantizer(config), model.dtype
    quantizer.prepare_(model)
    layers = model.base_model.layers
    prefix = next(name for name, module in model.named_modules() if module is layers)
    states, rest = _first_states(model, windows)
    layout = layout_of("int4", config.group_size, config.symmetric)
    arena = Arena()
    for number, layer in enumerate(progress(list(layers), len(layers), "Calibrating layers")):
        layer.float()
        for name, gram in _grams(layer, states, rest).items():
            _pack_(model, f"{prefix}.{number}.{name}", gram, layout, arena)
        states = [layer(x, *rest)[0] for x in states]
        layer.to(dtype)
    _pack_the_rest_(model, quantizer, prefix, dtype)
    quantizer.finish_(model)


def _first_states(model: Any, windows: Sequence[Tensor]) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Return what the first layer gets for each window, [B, T, N] float32, and its further arguments."""
    base = model.base_model
    caught: list[tuple[Any, ...]] = []

    def catch(_: nn.Module, args: tuple[Any, ...]) -> None:
        caught.append(args)
        raise _Stopped

    handle = base.layers[0].register_forward_pre_hook(catch)
    try:
        for ids in windows:
            with suppress(_Stopped):
                base(inputs_embeds=base.embed_tokens(ids).float(), use_cache=False)
    finally:
        handle.remove()
    return [args[0] for args in caught], caught[0][1:]


def _grams(layer: nn.Module, states: Sequence[Tensor], rest: tuple[Any, ...]) -> dict[str, Tensor]:
    """Run a layer and return the sum X^T X of each of its linear layers' inputs, by name.

    Layers that are called on one tensor (q, k and v; gate and up) share one sum.
    """
    sums: dict[str, Tensor] = {}
    owner: dict[str, str] = {}
    seen: list[tuple[Tensor, str]] = []  # inputs of the running pass, and which layer took each first

    def note(name: str, x: Tensor) -> None:
        owner[name] = next((first for other, first in seen if other is x), name)
        if owner[name] != name:
            return
        seen.append((x, name))
        flat = x.reshape(-1, x.shape[-1])
        if name not in sums:
            sums[name] = torch.zeros(flat.shape[1], flat.shape[1])
        sums[name].addmm_(flat.T, flat)

    with _hooks(layer, note):
        for x in states:
            layer(x, *rest)
            seen.clear()
    return {name: sums[first] for name, first in owner.items()}


@contextmanager
def _hooks(layer: nn.Module, note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Let `note` see the name and the input of each linear layer that runs."""
    handles = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pack_(model: nn.Module, name: str, gram: Tensor, layout: Layout, arena: Arena) -> None:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    out = arena.take(packed_size(layout, *weight.shape))
    try:
        matrix = gptq(weight, gram, layout, out=out)
    except ValueError as error:
        raise CheckpointError(f"{name!r} {error}: it cannot be quantised") from None
    replace_(model, name, matrix, weight.dtype)


def _pack_the_rest_(model: Any, quantizer: PackedQuantizer, layers: str, dtype: torch.dtype) -> None:
    """Round the embedding and an untied head to nearest, where the config asks for it."""
    tied = getattr(model.config, "tie_word_embeddings", False)
    for name, module in list(model.named_modules()):
        if type(module) not in (nn.Linear, nn.Embedding) or name.startswith(f"{layers}."):
            continue
        if not (tied and name == LM_HEAD):
            quantizer.load_(model, f"{name}.weight", module.weight, model.device, dtype)
