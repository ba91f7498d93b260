"""Quantises linear layers through bitsandbytes while their weights stream in, or takes them quantised.

In: a BitsAndBytesConfig, a model on the meta device, tensors one at a time. Out: NF4, FP4 or int8 layers in
the format in which transformers stores them. Embeddings, norms and output heads stay as they are.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from smollm3.errors import CheckpointError, ParameterError
from smollm3.quantization.bitsandbytes_library import bitsandbytes, check_device
from smollm3.quantization.bitsandbytes_linear import CodedLinear, Linear4bit, Linear8bit, Linear8bitFloat
from smollm3.quantization.bitsandbytes_quantize import quantize_4bit, quantize_8bit
from smollm3.quantization.bitsandbytes_stored import (
    NAMES_4BIT,
    NAMES_8BIT,
    missing_4bit,
    missing_8bit,
    read_4bit,
    read_8bit,
)
from smollm3.quantization.config import BitsAndBytesConfig
from smollm3.quantization.quantizer import mark_

HEADS = ("lm_head", "score", "qa_outputs")


class BitsAndBytesQuantizer:
    """A Quantizer (see quantizer.py) for one model. `stored`: the checkpoint holds codes, not weights."""

    def __init__(self, config: BitsAndBytesConfig, *, stored: bool = False) -> None:
        if not config.is_quantizable():
            raise ParameterError(
                "BitsAndBytesConfig asks for neither width: give load_in_4bit=True or load_in_8bit=True"
            )
        if config.llm_int8_enable_fp32_cpu_offload and not stored:
            raise ParameterError(
                "llm_int8_enable_fp32_cpu_offload=True would split the model between devices, and here it "
                "stays on one: leave it out"
            )
        bitsandbytes()
        self.config = config
        self.stored = stored
        self._layers: dict[str, CodedLinear] = {}
        self._waiting: dict[str, dict[str, Tensor]] = {}  # layer -> its tensors, until it is complete
        self._device = torch.device("cpu")

    def prepare_(self, model: nn.Module) -> None:
        """Replace the linear layers of a model on the meta device; parameter names stay.

        Where codes are stored, a layer is replaced when its first tensor arrives: the file knows best.
        """
        if self.stored and not self.config.llm_int8_has_fp16_weight:
            return
        kept = self._choose_kept(model)
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and not _is_kept(name, kept):
                self._replace_(model, name, module)

    def _choose_kept(self, model: nn.Module) -> list[str]:
        """Return which layers to leave alone, and store it in the config where transformers would differ."""
        heads = {name: m for name, m in model.named_modules() if name in HEADS and type(m) is nn.Linear}
        tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
        asked = self.config.llm_int8_skip_modules
        kept = list(heads) if asked is None else asked
        if asked is None:
            # transformers keeps a language head, and another head only where its weight comes last of all.
            differs = any(name != "lm_head" and head.bias is not None for name, head in heads.items())
        else:
            differs = bool(tied and "lm_head" in heads and not _is_kept("lm_head", kept))
            kept = (
                [*kept, "lm_head"] if differs else kept
            )  # one matrix with the embedding: it cannot be codes
        if differs:
            self.config = BitsAndBytesConfig.from_dict(
                {**self.config.to_dict(), "llm_int8_skip_modules": kept}
            )
        return kept

    def _replace_(self, model: nn.Module, name: str, plain: nn.Linear) -> None:
        config = self.config
        layer: nn.Module
        if config.load_in_8bit and config.llm_int8_has_fp16_weight:
            layer = Linear8bitFloat(plain, config.llm_int8_threshold)
        elif config.load_in_8bit:
            layer = self._layers[name] = Linear8bit(plain, config.llm_int8_threshold)
        else:
            num_bytes = (plain.in_features * plain.out_features + 1) // 2
            if num_bytes % config.bnb_4bit_quant_storage.itemsize:
                raise ParameterError(
                    f"{name} has {num_bytes} bytes of codes, which do not fill bnb_4bit_quant_storage="
                    f"{config.bnb_4bit_quant_storage}: choose uint8"
                )
            layer = self._layers[name] = Linear4bit(plain, config.bnb_4bit_compute_dtype)
        model.set_submodule(name, layer)

    def load_(
        self, model: nn.Module, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Take a tensor of the checkpoint if it is a quantised layer's; quantise it or keep its codes."""
        if self.stored:
            return self._take_stored_(model, name, tensor, device)
        layer = self._layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if layer is None:
            return False
        shape = (layer.out_features, layer.in_features)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{name!r} has the shape {tuple(tensor.shape)} and dtype {tensor.dtype}, its config asks for "
                f"floats of shape {shape}"
            )
        check_device(device)
        if isinstance(layer, Linear4bit):
            layer.fill_(*quantize_4bit(tensor.to(device, dtype), self.config))
        elif isinstance(layer, Linear8bit):
            layer.fill_(*quantize_8bit(tensor.to(device, dtype)))
        return True

    def _take_stored_(self, model: nn.Module, name: str, tensor: Tensor, device: torch.device) -> bool:
        for part in NAMES_8BIT if self.config.load_in_8bit else NAMES_4BIT:
            layer_name = name.removesuffix(f".{part}")
            if layer_name != name and self._takes_(model, layer_name, part, tensor):
                self._device = device
                self._waiting.setdefault(layer_name, {})[part] = tensor
                self._fill_if_complete_(layer_name)
                return True
        return False

    def _takes_(self, model: nn.Module, layer_name: str, part: str, tensor: Tensor) -> bool:
        """Whether a stored tensor is a quantised layer's; the first one of a layer makes it one."""
        if layer_name in self._layers:
            return True
        try:
            module = model.get_submodule(layer_name)
        except AttributeError:
            return False
        is_column = tensor.dim() == 2 and tensor.shape[1] == 1  # how 4-bit codes lie, in any storage dtype
        if part == "weight" and tensor.is_floating_point() and not is_column:
            return False
        if type(module) is not nn.Linear or self.config.llm_int8_has_fp16_weight:
            return False
        self._replace_(model, layer_name, module)
        return True

    def _fill_if_complete_(self, layer_name: str) -> None:
        layer, found, device = self._layers[layer_name], self._waiting[layer_name], self._device
        shape = (layer.out_features, layer.in_features)
        if isinstance(layer, Linear4bit):
            if missing_4bit(found):
                return
            check_device(device)
            layer.fill_(*read_4bit(layer_name, found, shape, device))
        elif isinstance(layer, Linear8bit):
            if missing_8bit(found):
                return
            check_device(device)
            layer.fill_(*read_8bit(layer_name, found, shape, device))
        del self._waiting[layer_name]

    def finish_(self, model: nn.Module) -> None:
        """Check that every layer that began to arrive is complete, and mark the model."""
        for layer_name, found in list(self._waiting.items()):
            if self.config.load_in_8bit and missing_8bit(found) == ["weight_format"]:
                found["weight_format"] = torch.tensor(0)  # it came later than the format: rows were meant
                self._fill_if_complete_(layer_name)
                continue
            missing = missing_8bit(found) if self.config.load_in_8bit else missing_4bit(found)
            raise CheckpointError(
                f"the quantised layer {layer_name!r} lacks {', '.join(missing)}: the checkpoint is incomplete"
            )
        mark_(model, self)

    def state_dict(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield what is to be stored, in transformers' format."""
        yield from model.state_dict().items()

    def config_dict(self) -> dict[str, Any] | None:
        """Return the `quantization_config` of config.json; None where the weights stay plain floats."""
        return None if self.config.llm_int8_has_fp16_weight else self.config.to_dict()


def _is_kept(name: str, patterns: list[str]) -> bool:
    """Whether a module is one of those to leave alone, by the rule of transformers.

    A pattern is a regular expression from the start of the name to the end of one of its parts, or a suffix.
    """
    try:
        return any(
            re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(pattern)
            for pattern in patterns
        )
    except re.error as error:
        raise ParameterError(
            f"llm_int8_skip_modules={patterns!r} is no list of name patterns: {error}"
        ) from None
