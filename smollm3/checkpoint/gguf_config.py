"""What a GGUF file's metadata amounts to as a config.json.

In: a checked header and the names of its tensors in HF's terms. Out: a dict. The file says nothing of NoPE
layers: those of architecture `smollm3` are every fourth one, which is what llama.cpp has built in.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from smollm3.checkpoint.gguf_header import GGUFHeader
from smollm3.errors import CheckpointError

ARCHITECTURES = ("smollm3", "llama")
NO_ROPE_INTERVAL = 4
_LLAMA_THETA = 10_000.0  # what the llama architecture means by leaving rope.freq_base out
_SPECIAL_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
# Llama 3.1 stores its stretched frequencies instead of these parameters; they have never been others.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class _Metadata:
    """Typed access to the keys of the file's architecture."""

    def __init__(self, header: GGUFHeader) -> None:
        self.path, self.values = header.path, header.metadata
        self.architecture = self.values.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{self.path} holds a model of architecture {self.architecture!r}: only smollm3 and llama "
                "can be read"
            )

    def get(self, key: str) -> Any:
        return self.values.get(f"{self.architecture}.{key}")

    def fail(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.architecture}.{key} {problem}")

    def count(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self.fail(key, f"is {value!r}, expected a positive integer: the file is not complete")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.fail(key, f"is {value!r}, expected a finite number: the file is not complete")
        return shortest(value)


def architecture_of(header: GGUFHeader) -> str:
    """Return `smollm3` or `llama`; CheckpointError for any other."""
    return str(_Metadata(header).architecture)


def head_counts(header: GGUFHeader) -> tuple[int, int]:
    """Return the numbers of query heads and of key-value heads."""
    data = _Metadata(header)
    num_heads = data.count("attention.head_count")
    return num_heads, data.count("attention.head_count_kv", num_heads)


def config_dict(
    header: GGUFHeader, names: Collection[str], vocab_size: int, rope_factors: np.ndarray[Any, Any] | None
) -> dict[str, Any]:
    """Return the config.json that the metadata amounts to.

    Args:
        names: the tensors that are there, by HF's names.
        rope_factors: the values of the tensor `rope_freqs.weight`, where there is one.
    """
    data = _Metadata(header)
    num_layers, (num_heads, num_kv_heads) = data.count("block_count"), head_counts(header)
    if num_layers > len(header.tensors):
        raise data.fail("block_count", f"is {num_layers}, with {len(header.tensors)} tensors in the file")
    interval = NO_ROPE_INTERVAL if data.architecture == "smollm3" else num_layers + 1
    config: dict[str, Any] = {
        "model_type": "smollm3",
        "architectures": ["SmolLM3ForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": data.count("embedding_length"),
        "intermediate_size": data.count("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "max_position_embeddings": data.count("context_length"),
        "rms_norm_eps": data.number("attention.layer_norm_rms_epsilon"),
        "no_rope_layers": [int((i + 1) % interval != 0) for i in range(num_layers)],
        "tie_word_embeddings": "lm_head.weight" not in names,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in names,
        "mlp_bias": "model.layers.0.mlp.up_proj.bias" in names,
        "hidden_act": "silu",
    }
    for field, name in _SPECIAL_IDS.items():
        config[field] = data.values.get(f"tokenizer.ggml.{name}_token_id")
    config |= _head_dim(data, config["hidden_size"] // num_heads)
    config["rope_theta"] = data.number(
        "rope.freq_base", _LLAMA_THETA if data.architecture == "llama" else None
    )
    scaling = _rope_scaling(data, config["max_position_embeddings"])
    if scaling is None and rope_factors is not None:
        scaling = _llama3_scaling(data, config["rope_theta"], rope_factors)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def _head_dim(data: _Metadata, derived: int) -> dict[str, int]:
    head_dim = data.count("attention.key_length", derived)
    for key in ("attention.value_length", "rope.dimension_count"):
        if data.count(key, head_dim) != head_dim:
            raise data.fail(key, f"is {data.get(key)}, and SmolLM3 needs the width of its heads, {head_dim}")
    return {} if head_dim == derived else {"head_dim": head_dim}


def _rope_scaling(data: _Metadata, context: int) -> dict[str, Any] | None:
    kind = data.get("rope.scaling.type") or "linear"
    factor = data.number("rope.scaling.factor", data.number("rope.scale_linear", 1.0))
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if kind not in ("linear", "yarn"):
        raise data.fail("rope.scaling.type", f"is {kind!r}: none, linear and yarn can be read")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "linear":
        return scaling
    for key, neutral in (("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)):
        if data.number(key, neutral) != neutral:
            raise data.fail(key, f"is {data.get(key)}: SmolLM3's YaRN has no such setting")
    scaling["original_max_position_embeddings"] = data.count("rope.scaling.original_context_length", context)
    for field in ("beta_fast", "beta_slow"):
        if data.get(f"rope.scaling.yarn_{field}") is not None:
            scaling[field] = data.number(f"rope.scaling.yarn_{field}")
    # yarn_attn_factor is HF's attention_factor; attn_factor multiplies whatever that is.
    own = data.number("rope.scaling.yarn_attn_factor", 0.1 * math.log(factor) + 1.0)
    attention = own * data.number("rope.scaling.attn_factor", 1.0)
    if data.get("rope.scaling.yarn_attn_factor") is not None or attention != own:
        scaling["attention_factor"] = attention
    return scaling


def _llama3_scaling(data: _Metadata, theta: float, factors: np.ndarray[Any, Any]) -> dict[str, Any] | None:
    """Find the parameters that give the stored divisors of the frequencies, and check that they do."""
    if not np.all(np.isfinite(factors)) or np.all(factors == 1):
        return None
    factor = shortest(float(factors.max()))
    low, high, original = _LLAMA3.values()
    periods = 2 * math.pi * theta ** (np.arange(factors.size) / factors.size)
    smooth = np.clip((original / periods - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(factors, expected, rtol=1e-4):
        raise CheckpointError(
            f"{data.path}: rope_freqs.weight is not Llama 3's scaling by {factor}, and no other can be read "
            "from a tensor: use the safetensors checkpoint"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def shortest(value: float) -> float:
    """Return the shortest decimal that is this float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))
