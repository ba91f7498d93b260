"""PackedConfig: how weights are to be packed for the native CPU engine, and how a packed checkpoint says so.

In: keyword arguments, a scheme's name, or the `quantization_config` of a config.json. Out: checked fields and
the dict to store. Imports neither torch nor the native library.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from smollm3.errors import ConfigError, ParameterError

QUANT_METHOD = "smollm3"
SCHEMES = ("int4", "int6", "int8", "nf4")
GROUP_SIZES = (32, 64, 128)
FORMAT = 1  # of the panels in a file


@dataclass(frozen=True)
class PackedConfig:
    """Integer weights with a scale per group of columns, for the native engine on the CPU.

    `scheme` is "int4", "int6", "int8" or "nf4" and holds for all linear layers of the decoder; `head` is the
    scheme of the embedding and the language head, None to leave them as they are. `symmetric=False` stores a
    minimum beside each scale of int4: closer to the weights, 16 bits more per group. Raises ParameterError.
    """

    scheme: str
    group_size: int = 64
    symmetric: bool = True
    head: str | None = "int8"

    def __post_init__(self) -> None:
        _choice("scheme", self.scheme, SCHEMES)
        _choice("group_size", self.group_size, GROUP_SIZES)
        _choice("symmetric", self.symmetric, (True, False))
        _choice("head", self.head, (*SCHEMES, None))
        if not self.symmetric and "int4" not in (self.scheme, self.head):
            raise ParameterError(
                f"symmetric=False adds a minimum to int4 and nothing to {self.scheme}: leave it out"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the `quantization_config` of a packed checkpoint's config.json."""
        return {"quant_method": QUANT_METHOD, "format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave. Raises ConfigError for anything else."""
        fields = {name: value for name, value in stored.items() if name not in ("quant_method", "format")}
        if stored.get("format", FORMAT) != FORMAT:
            raise ConfigError(
                f"quantization_config has format {stored['format']!r} and this version reads {FORMAT}: "
                "update smollm3, or quantise the model anew"
            )
        if unknown := fields.keys() - cls.__dataclass_fields__:
            raise ConfigError(f"quantization_config has an unknown field {sorted(unknown)[0]!r}: remove it")
        if "scheme" not in fields:
            raise ConfigError(f"quantization_config lacks scheme: give one of {', '.join(SCHEMES)}")
        try:
            return cls(**fields)
        except ParameterError as error:
            raise ConfigError(f"quantization_config: {error}") from None


def as_packed_config(config: object) -> PackedConfig | None:
    """Return a PackedConfig for one in any spelling (object, dict, a scheme's name), None for other schemes'.

    Raises ParameterError for a name that no scheme has, ConfigError for a damaged dict.
    """
    if isinstance(config, PackedConfig):
        return config
    if isinstance(config, str):
        if config not in SCHEMES:
            raise ParameterError(
                f"quantization_config={config!r}: give one of {', '.join(SCHEMES)}, a PackedConfig or a "
                "BitsAndBytesConfig"
            )
        return PackedConfig(config)
    if isinstance(config, Mapping) and config.get("quant_method") == QUANT_METHOD:
        return PackedConfig.from_dict(config)
    return None


def _choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ParameterError(f"{name}={value!r}: give one of {', '.join(map(str, choices))}")
