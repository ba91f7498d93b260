"""from_pretrained and save_pretrained for every model class, and what a loaded model says about itself.

In: a name or path and the arguments of the page's programs. Out: a model. Stands on `checkpoint/` for files
and on `loading.py` for filling.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from smollm3.checkpoint.hub import resolve
from smollm3.checkpoint.safetensors import save_shards
from smollm3.checkpoint.source import open_checkpoint
from smollm3.errors import ConfigError, ParameterError
from smollm3.model.config import SmolLM3Config
from smollm3.model.device import resolve_device
from smollm3.quantization.quantizer import QuantizedLinear, Quantizer, choose_quantizer, refuse_cast

if TYPE_CHECKING:
    from smollm3.model.module import SmolLM3PreTrainedModel

_WHERE = ("revision", "cache_dir", "token", "local_files_only", "subfolder")
_HOW = ("dtype", "torch_dtype", "device_map", "attn_implementation", "quantization_config", "config")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1, "": 1}


class PreTrained:
    """Gives a model `from_pretrained` and `save_pretrained`."""

    config: SmolLM3Config
    quantizer: Quantizer | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        config: SmolLM3Config | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model from a folder, a GGUF file, a short name or a repository of the hub.

        Args:
            dtype, torch_dtype: two spellings; a dtype, its name or "auto" (default: as stored; a quantized
                GGUF is read as bfloat16).
            device_map: None or "cpu", "auto" (the first accelerator, else the CPU), a device or its index.
            attn_implementation: sdpa (default), eager, flash_attention_2 or flex_attention.
            quantization_config: BitsAndBytesConfig or its dict; by default what the checkpoint says.
            config: instead of the checkpoint's.
            **kwargs: revision, cache_dir, token, local_files_only, subfolder; fields of the config, which win
                over the file's.

        Raises:
            ModelNotFoundError, CheckpointError, ConfigError, DeviceError, ParameterError,
            MissingDependencyError; each in one line.
        """
        from smollm3.model.loading import LoadPlan, choose_dtype, load_model

        where = {name: kwargs.pop(name) for name in _WHERE if name in kwargs}
        _check_switches_(kwargs)
        device = resolve_device(device_map)
        path = resolve(pretrained_model_name_or_path, **where)
        with open_checkpoint(path) as checkpoint:
            config = _config(config, checkpoint.config, kwargs, checkpoint.path)
            chosen = choose_dtype(dtype, torch_dtype, config, checkpoint)
            quantizer = choose_quantizer(checkpoint.config.get("quantization_config"), quantization_config)
            plan = LoadPlan(device, chosen, attn_implementation, quantizer)
            config.quantization_config = None  # the quantizer writes it, once there is something quantised
            config.dtype = config.torch_dtype = str(chosen).removeprefix("torch.")
            model = load_model(cls, config, checkpoint, plan)
            if checkpoint.generation_config is not None and hasattr(model, "generation_config"):
                from smollm3.model.generation_config import GenerationConfig

                model.generation_config = GenerationConfig.from_dict(checkpoint.generation_config)
        return model

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        max_shard_size: int | str = "5GB",
        state_dict: Mapping[str, Tensor] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write config.json, generation_config.json and safetensors that transformers opens.

        Args:
            max_shard_size: bytes, or a text such as "5GB"; above it the weights are split, with an index.
            state_dict: other values for the model's tensors, by its names.
        """
        if not safe_serialization:
            raise ParameterError(
                "safe_serialization=False would write a pickle: only safetensors are written"
            )
        model = cast("SmolLM3PreTrainedModel", self)
        folder = Path(save_directory)
        if folder.is_file():
            raise ParameterError(f"{folder} is a file: give a folder to save into")
        limit = _bytes(max_shard_size)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = self._tensors_to_save(model, state_dict)
        save_shards(folder, tensors, limit, {"format": "pt"})
        data = model.config.to_dict()
        data["architectures"] = [type(self).__name__]
        if self.quantizer is None:
            data.pop("quantization_config", None)
        data["dtype"] = data["torch_dtype"] = str(model.dtype).removeprefix("torch.")
        (folder / "config.json").write_text(
            json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        generation_config = getattr(model, "generation_config", None)
        if generation_config is not None:
            generation_config.save_pretrained(folder)

    def _tensors_to_save(self, model: nn.Module, given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if given is None and self.quantizer is not None:
            given = dict(self.quantizer.state_dict(model))
        tensors = dict(model.state_dict() if given is None else given)
        if self.config.tie_word_embeddings:
            for name in getattr(model, "_tied_weights_keys", {}):
                tensors.pop(name, None)
        return tensors

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's floating-point parameters."""
        module = cast(nn.Module, self)
        return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(cast(nn.Module, self).parameters()).device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count parameters; tied ones once, quantised ones as the weights that they stand for."""
        module = cast(nn.Module, self)
        skipped = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Embedding)}
        coded = {
            f"{name}.weight": layer.in_features * layer.out_features
            for name, layer in module.named_modules()
            if isinstance(layer, QuantizedLinear)
        }
        return sum(
            coded.get(name, parameter.numel())
            for name, parameter in module.named_parameters()
            if (parameter.requires_grad or not only_trainable)
            and not (exclude_embeddings and name in skipped)
        )

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast as nn.Module.to does. Raises ParameterError for a cast of a quantised model."""
        module = cast(nn.Module, self)
        refuse_cast(module, torch._C._nn._parse_to(*args, **kwargs)[1])
        super().to(*args, **kwargs)  # type: ignore[misc]
        return self

    def half(self) -> Self:
        """Cast to float16."""
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        """Cast to bfloat16."""
        return self.to(torch.bfloat16)

    def float(self) -> Self:
        """Cast to float32."""
        return self.to(torch.float32)

    def double(self) -> Self:
        """Cast to float64."""
        return self.to(torch.float64)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Return the bytes of the model's parameters (tied ones once) and, by default, its buffers."""
        module = cast(nn.Module, self)
        total = sum(parameter.nbytes for parameter in module.parameters())
        if return_buffers:
            total += sum(buffer.nbytes for buffer in module.buffers())
        return total


def _check_switches_(kwargs: dict[str, Any]) -> None:
    """Take out the switches of transformers that have one meaning here; refuse their other value."""
    if kwargs.pop("trust_remote_code", False):
        raise ParameterError("trust_remote_code=True is refused: no code of a checkpoint is ever run")
    if kwargs.pop("use_safetensors", None) is False:
        raise ParameterError("use_safetensors=False asks for pickles, which are never loaded: leave it out")
    if kwargs.pop("low_cpu_mem_usage", None) is False:
        raise ParameterError("low_cpu_mem_usage=False is not supported: weights always stream in one by one")


def _config(
    given: SmolLM3Config | None, stored: Mapping[str, Any], overrides: Mapping[str, Any], path: Path
) -> SmolLM3Config:
    known = [*SmolLM3Config.__dataclass_fields__, *_WHERE, *_HOW]
    for name in overrides:
        if name not in SmolLM3Config.__dataclass_fields__ or name == "extra":
            close = get_close_matches(name, known, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise ParameterError(
                f"{name!r} is neither an argument of from_pretrained nor a field of the config{hint}"
            )
    try:
        data = stored if given is None else given.to_dict()
        return SmolLM3Config.from_dict(data, **overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _bytes(size: int | str) -> int:
    if isinstance(size, str):
        text = size.strip().upper().replace(" ", "")
        number = text.rstrip("KMGIB")
        unit = text[len(number) :]
        if unit in _UNITS and number.replace(".", "", 1).isdecimal():
            size = int(float(number) * _UNITS[unit])
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ParameterError(f"max_shard_size={size!r}: give bytes or a text such as '5GB'")
    return size
