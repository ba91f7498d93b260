"""The checks of a SmolLM3Config: types of its fields, and fields that contradict each other.

In: a config under construction. Out: nothing, or a ConfigError of one line that names the field and the way
out.
"""

import dataclasses
import math
import types
import typing
from typing import TYPE_CHECKING, Any

from smollm3.errors import ConfigError

if TYPE_CHECKING:
    from smollm3.model.config import SmolLM3Config

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "relu")
LAYER_TYPES = ("full_attention", "sliding_attention")
ATTENTION_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flex_attention")
DTYPES = ("float64", "float32", "float16", "bfloat16")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
POOLINGS = ("attention_mask", "pad_token")
# Sizes from which lists are built before any weight can contradict them.
MAX_LAYERS = 10_000
_LARGEST = {"num_hidden_layers": MAX_LAYERS, "num_labels": 1_000_000}
_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "no_rope_layer_interval",
    "rms_norm_eps",
    "num_labels",
)


def check_types(config: "SmolLM3Config") -> None:
    """Raise ConfigError for a field of the wrong type, or a size that is not positive."""
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if not _fits(value, hints[item.name]):
            expected = (
                str(item.type).replace("typing.", "") if isinstance(item.type, str) else _spell(item.type)
            )
            raise ConfigError(f"config field {item.name} must be {expected}, not {value!r}"[:300])
        if item.name in _POSITIVE and value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"config field {item.name} must be positive, not {value!r}")
        if (largest := _LARGEST.get(item.name)) is not None and value is not None and value > largest:
            raise ConfigError(f"config field {item.name} is {value}, more than any model has ({largest})")


def _spell(hint: Any) -> str:
    return (
        hint.__name__
        if isinstance(hint, type) and not typing.get_args(hint)
        else str(hint).replace("typing.", "")
    )


def _fits(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is Any:
        return True
    if origin is list:
        (item_hint,) = typing.get_args(hint)
        return isinstance(value, list | tuple) and all(_fits(item, item_hint) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(None) if hint is None else hint)


def check_config(config: "SmolLM3Config") -> None:
    """Raise ConfigError for fields that contradict each other or ask for what is not there."""
    _check_heads(config)
    _check_layers(config)
    _check_choices(config)
    _check_ids(config)
    for name in ("attention_dropout", "classifier_dropout", "hidden_dropout"):
        value = getattr(config, name)
        if value is not None and not 0.0 <= value < 1.0:
            raise ConfigError(f"config field {name} must be at least 0 and below 1, not {value!r}")
    if not 0.0 <= config.initializer_range <= 1.0:
        raise ConfigError(
            f"config field initializer_range must lie in [0, 1], not {config.initializer_range!r}"
        )


def _check_heads(config: "SmolLM3Config") -> None:
    assert config.num_key_value_heads is not None
    assert config.head_dim is not None
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(
            f"num_attention_heads {config.num_attention_heads} does not divide by num_key_value_heads "
            f"{config.num_key_value_heads}: each kv head serves the same number of query heads"
        )
    if config.head_dim % 2 and any(config.no_rope_layers or ()):
        raise ConfigError(f"head_dim {config.head_dim} is odd: RoPE rotates pairs, give an even one")


def _check_layers(config: "SmolLM3Config") -> None:
    assert config.layer_types is not None
    assert config.no_rope_layers is not None
    if any(flag not in (0, 1) for flag in config.no_rope_layers):
        raise ConfigError("no_rope_layers may hold only 1 (RoPE) and 0 (no positions)")
    if len(config.layer_types) != config.num_hidden_layers:
        raise ConfigError(
            f"layer_types has {len(config.layer_types)} entries for "
            f"num_hidden_layers={config.num_hidden_layers}: give one per layer, or null"
        )
    for layer_type in config.layer_types:
        if layer_type not in LAYER_TYPES:
            raise ConfigError(
                f"layer type {layer_type!r} is not supported: use one of {', '.join(LAYER_TYPES)}"
            )
    if config.use_sliding_window and config.sliding_window is None:
        raise ConfigError(
            "use_sliding_window is true but sliding_window is null: give a width or switch it off"
        )
    if "sliding_attention" in config.layer_types and not config.use_sliding_window:
        raise ConfigError(
            "layer_types asks for sliding_attention but use_sliding_window is false: change one"
        )


def _check_choices(config: "SmolLM3Config") -> None:
    for name, choices in (
        ("hidden_act", ACTIVATIONS),
        ("dtype", DTYPES),
        ("problem_type", PROBLEM_TYPES),
        ("classifier_pooling", POOLINGS),
        ("attn_implementation", ATTENTION_IMPLEMENTATIONS),
    ):
        value = getattr(config, name)
        if value is not None and value not in choices:
            raise ConfigError(f"config field {name} is {value!r}: use one of {', '.join(choices)}")
    if config.problem_type == "single_label_classification" and config.num_labels == 1:
        raise ConfigError(
            "single_label_classification needs num_labels > 1: use 2 labels, or problem_type regression"
        )


def _check_ids(config: "SmolLM3Config") -> None:
    eos = config.eos_token_id
    ids = {"pad_token_id": [config.pad_token_id], "bos_token_id": [config.bos_token_id]}
    ids["eos_token_id"] = list(eos) if isinstance(eos, list | tuple) else [eos]
    for name, values in ids.items():
        for value in values:
            if value is not None and not 0 <= value < config.vocab_size:
                raise ConfigError(
                    f"{name} {value} lies outside the vocabulary of {config.vocab_size}: correct it or use "
                    "null"
                )
