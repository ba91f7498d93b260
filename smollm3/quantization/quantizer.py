"""What a quantiser is: the few calls by which loading and saving a model pass through it.

In: a config of any scheme, or the `quantization_config` of a checkpoint. Out: the quantiser that does it, or
None. Knows no scheme beyond its name and no model class; linear layers are found by type.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from smollm3.errors import ConfigError, ParameterError
from smollm3.quantization.config import QUANT_METHOD, BitsAndBytesConfig
from smollm3.quantization.packed_config import PackedConfig, as_packed_config

AnyConfig = BitsAndBytesConfig | PackedConfig | Mapping[str, Any] | str

logger = logging.getLogger(__name__)


@runtime_checkable
class QuantizedLinear(Protocol):
    """A module that stands where nn.Linear stood and holds codes and scales instead of weights."""

    in_features: int
    out_features: int
    training: bool

    def dequantize(self) -> Tensor:
        """Return the weights that the codes stand for, [out_features, in_features]."""
        ...

    def weight_bytes(self) -> tuple[int, int]:
        """Return the bytes held in codes and in scales, without the bias."""
        ...


class Quantizer(Protocol):
    """Turns the linear layers of one model into quantised ones while its weights stream in."""

    def prepare_(self, model: nn.Module) -> None:
        """Replace linear layers of a model on the meta device; parameter names stay."""
        ...

    def load_(
        self, model: nn.Module, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Take a tensor of the checkpoint, under its name in the model; False: it is not a quantised layer's.

        A float weight is cast to `dtype` and quantised on `device`; stored codes and scales are kept as is.
        Also to be asked about names that the model does not have: scales have names of their own.
        """
        ...

    def finish_(self, model: nn.Module) -> None:
        """Check that every quantised layer is complete, and mark the model. Raises CheckpointError."""
        ...

    def state_dict(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield what is to be stored, tied weights under each of their names."""
        ...

    def config_dict(self) -> dict[str, Any] | None:
        """Return the `quantization_config` of config.json; None where plain weights are stored."""
        ...


def quantizer_for(config: AnyConfig | None, *, stored: bool = False) -> Quantizer | None:
    """Return the quantiser for a config, None for no config.

    Args:
        stored: the weights of the checkpoint are codes already, and `config` is what came with them.

    Raises ParameterError or ConfigError for a config that asks for nothing or for an unknown scheme,
    MissingDependencyError where the scheme's package is not installed.
    """
    if config is None:
        return None
    if (packed := as_packed_config(config)) is not None:
        from smollm3.quantization.packed_quantizer import PackedQuantizer

        return PackedQuantizer(packed, stored=stored)
    if isinstance(config, Mapping):
        method = config.get("quant_method", QUANT_METHOD)
        if method != QUANT_METHOD:
            raise ConfigError(
                f"quantization_config has quant_method {method!r}: this package reads {QUANT_METHOD!r} and "
                "'smollm3' checkpoints and unquantised ones"
            )
        config = BitsAndBytesConfig.from_dict(config)
    if not isinstance(config, BitsAndBytesConfig):
        raise ParameterError(f"quantization_config is a {type(config).__name__}: give a BitsAndBytesConfig")
    from smollm3.quantization.bitsandbytes import BitsAndBytesQuantizer

    return BitsAndBytesQuantizer(config, stored=stored)


def choose_quantizer(stored: Mapping[str, Any] | None, asked: AnyConfig | None) -> Quantizer | None:
    """Return the quantiser for a checkpoint whose config.json has `stored`, when the user asked for `asked`.

    Codes that are stored cannot become others: what the file says wins, and asking for another width or
    type is a ParameterError. The asked compute dtype and threshold apply, for they store nothing.
    """
    if stored is None:
        return quantizer_for(asked)
    if asked is None:
        return quantizer_for(stored, stored=True)
    packed = as_packed_config(stored), as_packed_config(asked)
    if packed[0] is not None and packed[0] == packed[1]:
        return quantizer_for(stored, stored=True)
    if any(packed):
        raise ParameterError(
            "the checkpoint is quantised already and not as quantization_config asks: leave it out or load "
            "the unquantised model"
        )
    found = BitsAndBytesConfig.from_dict(stored)
    assert not isinstance(asked, str | PackedConfig)
    wanted = BitsAndBytesConfig.from_dict(asked) if isinstance(asked, Mapping) else asked
    if found.quantization_method() != wanted.quantization_method():
        raise ParameterError(
            f"the checkpoint is stored in {found.quantization_method()} and cannot be loaded in "
            f"{wanted.quantization_method()}: leave quantization_config out or load the unquantised model"
        )
    run = {name: getattr(wanted, name) for name in ("bnb_4bit_compute_dtype", "llm_int8_threshold")}
    return quantizer_for(BitsAndBytesConfig.from_dict({**found.to_dict(), **run}), stored=True)


@torch.no_grad()
def dequantize_(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Turn every quantised layer back into nn.Linear, in `dtype` (None: the dtype it was quantised from).

    The weights are those that the codes stand for: what quantisation lost stays lost.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            weight = module.dequantize()
            weight = weight if dtype is None else weight.to(dtype)
            plain: nn.Linear | nn.Embedding
            if isinstance(module, nn.Embedding):
                plain = nn.Embedding(
                    module.out_features, module.in_features, module.padding_idx, _weight=weight
                )
            else:
                plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
                bias = getattr(module, "bias", None)
                if bias is not None:
                    plain.bias = nn.Parameter(bias.detach().to(weight.dtype))
            plain.weight = nn.Parameter(weight)
            model.set_submodule(name, plain.train(module.training))
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    mark_(model, None)


def mark_(model: nn.Module, quantizer: Quantizer | None) -> None:
    """Write on the model and its config how it is quantised (None: not at all)."""
    stored = None if quantizer is None else quantizer.config_dict()
    model.quantizer = quantizer  # type: ignore[assignment]
    model.is_quantized = quantizer is not None  # type: ignore[assignment]
    for bits in (4, 8):
        setattr(model, f"is_loaded_in_{bits}bit", bool(stored and stored.get(f"load_in_{bits}bit")))
    config = getattr(model, "config", None)
    if config is not None:
        config.quantization_config = stored


def refuse_cast(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Raise ParameterError where a quantised model is asked to change its dtype."""
    if dtype is not None and getattr(model, "is_quantized", False):
        raise ParameterError(
            f"a quantised model cannot be cast to {str(dtype).removeprefix('torch.')}: choose dtype in "
            "from_pretrained (bnb_4bit_compute_dtype for bitsandbytes), or dequantize_(model, dtype) first"
        )
