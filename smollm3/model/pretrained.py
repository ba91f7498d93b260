"""from_pretrained and save_pretrained for every model class, and what a loaded model says about itself.

In: a name or path and the arguments of the page's programs. Out: a model. Stands on `checkpoint/` for files
and on `loading.py` for filling.
"""

import json
from collections.abc import Mapping
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from smollm3.checkpoint.hub import resolve
from smollm3.checkpoint.safetensors import save_shards
from smollm3.checkpoint.source import Checkpoint, SafetensorsCheckpoint, open_checkpoint
from smollm3.errors import CheckpointError, ConfigError, MissingDependencyError, ParameterError
from smollm3.model.config import SmolLM3Config
from smollm3.model.device import resolve_device
from smollm3.model.load_arguments import DTYPES, asked_dtype, read_config, split_arguments
from smollm3.model.loading import LoadPlan, load_model
from smollm3.native.library import native_status
from smollm3.ops.attention import check_implementation
from smollm3.quantization.quantizer import QuantizedLinear, Quantizer, choose_quantizer, refuse_cast

if TYPE_CHECKING:
    from smollm3.model.generation_config import GenerationConfig
    from smollm3.model.module import SmolLM3PreTrainedModel

KEEP_BLOCKS = "gguf"
# Below this many bytes in bfloat16 a quantised GGUF is read as bfloat16: a small model loses most by rounded
# activations and gains least (docs/decisions/041-gguf-blocks.md).
LARGE = 10**9
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
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a model from a folder, a GGUF file, a short name or a repository of the hub.

        Weights of the dtype asked for stay in the file's pages on the CPU: replace such a file, never write
        into it, while the model lives.

        Args:
            dtype, torch_dtype: two spellings; a dtype, its name or "auto" (default: as stored). With "auto"
                on the CPU, blocks of Q4_0, Q4_1 and Q8_0 in a large GGUF (1 GB or more in bfloat16) run as
                they are, for inference; smaller files, other blocks and other devices get bfloat16.
            device_map: None or "cpu", "auto" (the first accelerator, else the CPU), a device or its index.
            attn_implementation: sdpa (default), eager, flash_attention_2 or flex_attention.
            quantization_config: "int4", "int8", "nf4" or a PackedConfig (for the native engine on the CPU),
                "gguf" (keep a GGUF file's blocks at any size), BitsAndBytesConfig, or a dict of either;
                by default what the checkpoint says.
            config: instead of the checkpoint's.
            ignore_mismatched_sizes: start a head anew when the file has it in another shape; the rest of the
                model has to fit.
            **kwargs: revision, cache_dir, token, local_files_only, subfolder; fields of the config, which win
                over the file's.

        Raises:
            ModelNotFoundError, CheckpointError, ConfigError, DeviceError, ParameterError,
            MissingDependencyError; each in one line.
        """
        where, overrides = split_arguments(kwargs)
        asked = asked_dtype(dtype, torch_dtype)
        device = resolve_device(device_map)
        if attn_implementation is not None:
            check_implementation(attn_implementation, device)
        path = resolve(pretrained_model_name_or_path, **where)
        with open_checkpoint(path) as checkpoint:
            config = read_config(config, checkpoint.config, overrides, checkpoint.path)
            config.attn_implementation = attn_implementation or config.attn_implementation
            generation_config = _generation_config(checkpoint) if hasattr(cls, "generation_config") else None
            chosen = asked or DTYPES.get(config.dtype or "") or checkpoint.stored_dtype
            quantizer = _quantizer(checkpoint, config, quantization_config, asked, device)
            config.quantization_config = None  # the quantizer writes it, once there is something quantised
            config.dtype = config.torch_dtype = str(chosen).removeprefix("torch.")
            model = load_model(
                cls, config, checkpoint, LoadPlan(device, chosen, quantizer, ignore_mismatched_sizes)
            )
        if generation_config is not None:
            cast(Any, model).generation_config = generation_config
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

        Each file is replaced when its successor is whole, so the folder may be the one that was loaded from.

        Args:
            max_shard_size: bytes, or a text such as "5GB"; above it the weights are split, with an index.
            state_dict: other values for the model's tensors, all of them, by its names.

        Raises:
            ParameterError: an argument that cannot be followed, or a head that is no longer tied.
            CheckpointError: the folder cannot be written to.
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
        tensors = self._tensors_to_save(model, state_dict)
        data = model.config.to_dict()
        data["architectures"] = [_class_name(type(self))]
        if self.quantizer is None:
            data.pop("quantization_config", None)
        data["dtype"] = data["torch_dtype"] = str(model.dtype).removeprefix("torch.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_shards(folder, tensors, limit, {"format": "pt"})
            _write_text(folder / "config.json", json.dumps(data, indent=2, sort_keys=True) + "\n")
            if (generation_config := getattr(model, "generation_config", None)) is not None:
                generation_config.save_pretrained(folder)
        except OSError as error:
            raise CheckpointError(
                f"{folder} cannot be written to ({error.strerror or error}): choose another folder"
            ) from error

    def _tensors_to_save(self, model: nn.Module, given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Return what is stored, a tied weight once."""
        own = dict(model.state_dict() if self.quantizer is None else self.quantizer.state_dict(model))
        tensors = own if given is None else dict(given)
        tied: Mapping[str, str] = getattr(model, "_tied_weights_keys", {})
        for name, source in tied.items() if self.config.tie_word_embeddings else ():
            head = tensors.pop(name, None)
            own.pop(name, None)
            if head is not None and source in tensors and not _is_same(head, tensors[source]):
                raise ParameterError(
                    f"{name} and {source} differ, and the config ties them: call tie_weights() to drop the "
                    "first, or set config.tie_word_embeddings = False to keep both"
                )
        if odd := sorted(own.keys() ^ tensors.keys()):
            raise ParameterError(f"state_dict {'lacks' if odd[0] in own else 'has the unknown'} {odd[0]!r}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                raise ParameterError(
                    f"state_dict has {name!r} in the shape {tuple(tensor.shape)}, the model in "
                    f"{tuple(own[name].shape)}"
                )
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


def _generation_config(checkpoint: Checkpoint) -> "GenerationConfig | None":
    from smollm3.model.generation_config import GenerationConfig

    if checkpoint.generation_config is None:
        return None
    try:
        return GenerationConfig.from_dict(checkpoint.generation_config)
    except ParameterError as error:
        raise ConfigError(f"{checkpoint.path}: generation_config.json: {error}") from None


def _quantizer(
    checkpoint: Checkpoint,
    config: SmolLM3Config,
    asked: Any,
    dtype: torch.dtype | None,
    device: torch.device,
) -> Quantizer | None:
    """Return how the model is quantised: as stored, else as asked, else as a config that was given says.

    Failing all three, a large GGUF on the CPU keeps its blocks unless a dtype was asked for.
    """
    if isinstance(asked, str) and asked == KEEP_BLOCKS:
        return _asked_blocks(checkpoint, dtype, device)
    stored = checkpoint.config.get("quantization_config")
    if asked is None and stored is None:
        asked = config.quantization_config
    try:
        quantizer = choose_quantizer(stored, asked)
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from None
    if quantizer is None and dtype is None and device.type == "cpu" and _is_large(checkpoint):
        return _blocks_quantizer(checkpoint)
    return quantizer


def _is_large(checkpoint: Checkpoint) -> bool:
    """Whether the weights are many enough for their bytes to matter more than the rounding of activations."""
    weights = sum(prod(checkpoint.tensor_info(name)[0]) for name in checkpoint.names())
    return 2 * weights >= LARGE


def _asked_blocks(checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device) -> Quantizer:
    """Return what keeps a GGUF file's blocks; raise where they cannot be kept."""
    asked = f"quantization_config={KEEP_BLOCKS!r}"
    if isinstance(checkpoint, SafetensorsCheckpoint):
        raise ParameterError(
            f"{asked} keeps the blocks of a GGUF file, and {checkpoint.path} is none: give int4, int8 or nf4"
        )
    if dtype is not None or device.type != "cpu":
        raise ParameterError(f"{asked} computes on the CPU in its own format: leave dtype and device_map out")
    quantizer = _blocks_quantizer(checkpoint)
    if quantizer is None:
        raise MissingDependencyError(f"{asked} needs the native engine: {native_status().reason}")
    return quantizer


def _blocks_quantizer(checkpoint: Checkpoint) -> Quantizer | None:
    """Return what keeps a GGUF file's blocks, None where they have to become floats."""
    if not native_status().available or not checkpoint.keep_blocks():
        return None
    from smollm3.quantization.packed_blocks import BlocksQuantizer

    return BlocksQuantizer()


def _class_name(kind: type) -> str:
    """The name under which transformers knows a model class, also for a subclass of a user's own."""
    return next(k.__name__ for k in kind.__mro__ if k.__module__.startswith("smollm3.model."))


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one is other or one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is whole."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


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
