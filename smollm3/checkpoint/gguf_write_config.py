"""What a config.json amounts to as the metadata of a GGUF file: keys to plain Python values.

In: a config as `SmolLM3Config.to_dict()` gives it. Out: the architecture that llama.cpp is to run, its keys,
and Llama 3's stretched frequencies where the config asks for them. Whatever llama.cpp would run differently
is refused here. Knows no tensor of a model.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smollm3.checkpoint.gguf_config import NO_ROPE_INTERVAL
from smollm3.errors import CheckpointError

Config = Mapping[str, Any]
_SILU = ("silu", "swish")
# llama.cpp fixes these for both architectures, or has no key for them.
_YARN_FIXED: dict[str, Any] = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None}
_YARN_FIXED["mscale_all_dim"] = None
_WAY_OUT = "llama.cpp cannot run that, only this package can"


def architecture_for(config: Config) -> str:
    """Return `llama` for a model that rotates in every layer, `smollm3` for one that skips every fourth.

    Raises CheckpointError, in one line, for any other pattern and for what llama.cpp has no counterpart of.
    """
    layers = [bool(rotates) for rotates in config["no_rope_layers"][: config["num_hidden_layers"]]]
    if all(layers):
        architecture = "llama"
    elif layers == [(i + 1) % NO_ROPE_INTERVAL != 0 for i in range(len(layers))]:
        architecture = "smollm3"
    else:
        skipped = [i for i, rotates in enumerate(layers) if not rotates]
        raise CheckpointError(
            f"no_rope_layers leaves positions out of the layers {_shortened(skipped)}, and GGUF knows all "
            f"layers or every fourth: {_WAY_OUT}"
        )
    _refuse_strangers(config, architecture)
    return architecture


def _shortened(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return shown + ", ..." if len(numbers) > 6 else shown


def _refuse_strangers(config: Config, architecture: str) -> None:
    rope = config["rope_parameters"]
    if config["hidden_act"] not in _SILU:
        raise CheckpointError(f"hidden_act is {config['hidden_act']!r}, and GGUF means silu: {_WAY_OUT}")
    if "sliding_attention" in config["layer_types"][: config["num_hidden_layers"]]:
        raise CheckpointError(f"layer_types has sliding_attention: {_WAY_OUT}")
    if rope["rope_type"] == "dynamic":
        raise CheckpointError(f"rope_type is 'dynamic': {_WAY_OUT}; make it linear or yarn")
    if architecture == "smollm3":
        for field in ("attention_bias", "mlp_bias"):
            if config[field]:
                raise CheckpointError(f"{field} with layers that do not rotate: {_WAY_OUT}")
        if rope["rope_type"] == "llama3":
            raise CheckpointError(f"rope_type 'llama3' with layers that do not rotate: {_WAY_OUT}")
    if rope["rope_type"] == "yarn":
        for key, fixed in _YARN_FIXED.items():
            if rope.get(key, fixed) != fixed:
                raise CheckpointError(
                    f"YaRN's {key} is {rope[key]!r}, and GGUF has no key for it: {_WAY_OUT}"
                )


def config_metadata(config: Config, architecture: str) -> dict[str, Any]:
    """Return the keys that describe the model, under `architecture`."""
    head_dim = head_dim_of(config)
    values: dict[str, Any] = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        **_scaling(config["rope_parameters"]),
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


def head_dim_of(config: Config) -> int:
    """Return the width of a head, which a config leaves out where it follows."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    kind = rope["rope_type"]
    if kind not in ("linear", "yarn"):
        return {}
    factor = float(rope["factor"])
    values: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": factor}
    if kind == "yarn":
        values["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        if (attention := rope.get("attention_factor")) is not None:
            # llama.cpp multiplies its own factor, which is YaRN's default, by this one.
            values["rope.scaling.attn_factor"] = float(attention) / (0.1 * math.log(factor) + 1.0)
    return values


def rope_factors(config: Config) -> NDArray[np.float32] | None:
    """Return what each frequency of a llama3 scaling is divided by, [head_dim / 2]; None for other types."""
    rope = config["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return None
    size = head_dim_of(config) // 2
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    periods = 2 * math.pi * rope["rope_theta"] ** (np.arange(size) / size)
    smooth = np.clip((rope["original_max_position_embeddings"] / periods - low) / (high - low), 0.0, 1.0)
    factors: NDArray[np.float32] = (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)
    return factors
