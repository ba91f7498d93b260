"""One spelling for the RoPE settings of a config.

In: `rope_parameters` (transformers 5), `rope_scaling` + `rope_theta` (transformers 4), the legacy key `type`.
Out: one dict with `rope_type`, `rope_theta` and the numbers of that type. Knows no tensor and no model.
"""

import math
from collections.abc import Mapping
from typing import Any

from smollm3.errors import ConfigError

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_NUMBERS = (
    "rope_theta",
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


def one_spelling(
    rope_parameters: Mapping[str, Any] | None,
    rope_scaling: Mapping[str, Any] | None,
    rope_theta: float | None,
    *,
    default_theta: float | None,
    max_position_embeddings: int,
) -> dict[str, Any]:
    """Merge the three spellings into one checked dict.

    `default_theta` None means that a missing `rope_theta` is an error: the rotation cannot be guessed.
    """
    merged: dict[str, Any] = {}
    for name, given in (("rope_parameters", rope_parameters), ("rope_scaling", rope_scaling)):
        if given is not None:
            _merge_into(merged, _with_rope_type(name, given), name)
    if rope_theta is not None:
        _merge_into(merged, {"rope_theta": rope_theta}, "rope_theta")
    merged.setdefault("rope_type", "default")
    if merged.get("rope_theta") is None:
        if default_theta is None:
            raise ConfigError(
                "the config has lost rope_theta: add it (SmolLM3-3B has 5000000; 2000000 is what "
                "transformers would silently assume)"
            )
        merged["rope_theta"] = default_theta
    if merged["rope_type"] in ("yarn", "llama3"):
        merged.setdefault("original_max_position_embeddings", max_position_embeddings)
    check_rope(merged)
    return merged


def _with_rope_type(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name} must be an object of RoPE settings or null, not {given!r}")
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ConfigError(f"{name} holds one set per layer type; SmolLM3 has one set for all its RoPE layers")
    flat = dict(given)
    legacy = flat.pop("type", None)
    if legacy is not None and flat.setdefault("rope_type", legacy) != legacy:
        raise ConfigError(f"{name} says both rope_type={flat['rope_type']!r} and type={legacy!r}: keep one")
    return flat


def _merge_into(merged: dict[str, Any], given: Mapping[str, Any], name: str) -> None:
    for key, value in given.items():
        if value is None:
            continue
        if merged.setdefault(key, value) != value:
            raise ConfigError(
                f"{name} says {key}={value!r}, but the config also says {merged[key]!r}: keep one"
            )


def check_rope(parameters: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the numbers of this RoPE type are all there and make sense."""
    rope_type = parameters["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise ConfigError(f"rope_type {rope_type!r} is not supported: use one of {', '.join(ROPE_TYPES)}")
    for key in _REQUIRED[rope_type]:
        if key not in parameters:
            raise ConfigError(f"rope_type {rope_type!r} needs {key!r} beside it")
    for key in _NUMBERS:
        if key in parameters:
            _check_positive(key, parameters[key])
    if parameters.get("factor", 1.0) < 1.0:
        raise ConfigError(f"rope factor must be at least 1, not {parameters['factor']!r}")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("partial_rotary_factor is not supported: SmolLM3 rotates whole heads, leave it out")
    if rope_type == "llama3" and parameters["high_freq_factor"] <= parameters["low_freq_factor"]:
        raise ConfigError(
            f"rope high_freq_factor ({parameters['high_freq_factor']}) must be greater than low_freq_factor "
            f"({parameters['low_freq_factor']})"
        )
    if rope_type == "yarn" and parameters.get("beta_fast", 32) < parameters.get("beta_slow", 1):
        raise ConfigError("rope beta_fast must not be smaller than beta_slow")


def _check_positive(key: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
        raise ConfigError(f"rope setting {key} must be a positive number, not {value!r}")
