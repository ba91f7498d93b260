"""What loading and saving ask of a quantization scheme, and the choice of one by its config.

In: a config object or the `quantization_config` of a config.json. Out: a Quantizer. A scheme replaces
nn.Linear modules in place; it knows no file.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smollm3.errors import ConfigError


class Quantizer(Protocol):
    """Turns a model's linear layers into quantized ones while the weights stream in."""

    def prepare_(self, model: nn.Module) -> None:
        """Replace the linear layers of a model on the meta device."""

    def load_(
        self, model: nn.Module, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Take the tensor `name`, quantizing it if it is not yet, and return True; or leave it alone."""

    def finish_(self, model: nn.Module) -> None:
        """Make sure that every quantized layer is complete."""

    def state_dict(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors to save, under the names in which `load_` takes them back."""

    def config_dict(self) -> dict[str, Any]:
        """Return what config.json stores as `quantization_config`."""


def quantizer_for(config: Any) -> Quantizer | None:
    """Return the quantizer of a config object or of a stored `quantization_config`; None for none."""
    if config is None:
        return None
    if isinstance(config, Mapping):
        method = config.get("quant_method")
        if method != "bitsandbytes":
            raise ConfigError(
                f"quantization_config has the quant_method {method!r}: 'bitsandbytes' can be read"
            )
    from smollm3.quantization.bitsandbytes import BitsAndBytesQuantizer
    from smollm3.quantization.config import BitsAndBytesConfig

    if isinstance(config, Mapping):
        config = BitsAndBytesConfig.from_dict(config)
    if not isinstance(config, BitsAndBytesConfig):
        raise ConfigError(f"quantization_config={config!r}: give a BitsAndBytesConfig")
    return BitsAndBytesQuantizer(config)
