"""The contents of a config.json: which fields count, what llama files leave out, what overrides replace.

In: a dict as a file has it. Out: a dict of fields for SmolLM3Config, not yet checked. Imports no torch.
"""

from collections.abc import Mapping
from typing import Any

from smollm3.errors import ConfigError
from smollm3.model.config_checks import MAX_LAYERS

# What a llama file means by leaving a field out.
_LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
# Keys of a file that elsewhere choose code, kernels or a loader: never read, never written again.
DROPPED = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "extra",
    "kernel_config",
    "model_type",
    "name_or_path",
    "transformers_version",
    "trust_remote_code",
    "use_kernels",
}
_ROPE_DICTS = ("rope_parameters", "rope_scaling")
# What a file says no longer counts once an override speaks of the same thing.
_SUPERSEDES: dict[str, tuple[str, ...]] = {
    "num_labels": ("id2label", "label2id"),
    "id2label": ("num_labels", "label2id"),
    "dtype": ("torch_dtype",),
    "torch_dtype": ("dtype",),
    "no_rope_layer_interval": ("no_rope_layers", "layer_types"),
    "no_rope_layers": ("layer_types",),
    "num_hidden_layers": ("layer_types",),
    "use_sliding_window": ("layer_types",),
    "sliding_window": ("layer_types",),
}


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise ValueError when it says something twice."""
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            raise ValueError(f"the key {name!r} stands there twice")
        data[name] = value
    return data


def read_model_type(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with llama's meaning of omitted ones filled in where the file is a llama's."""
    model_type = data.get("model_type", "smollm3")
    if model_type == "smollm3":
        return dict(data)
    if model_type != "llama":
        raise ConfigError(
            f"model_type {model_type!r} cannot be run as SmolLM3: use a smollm3 or llama checkpoint"
        )
    rope = [data.get(name) for name in _ROPE_DICTS]
    has_theta = any(isinstance(part, Mapping) and part.get("rope_theta") is not None for part in rope)
    defaults = {k: v for k, v in _LLAMA_DEFAULTS.items() if k != "rope_theta" or not has_theta}
    fields = {**defaults, **data}
    if fields.get("rope_theta") is None and not has_theta:
        fields["rope_theta"] = _LLAMA_DEFAULTS["rope_theta"]
    for name in ("layer_types", "no_rope_layer_interval", "use_sliding_window", "sliding_window"):
        fields.pop(name, None)
    num_layers = fields["num_hidden_layers"]
    is_count = isinstance(num_layers, int) and num_layers <= MAX_LAYERS  # else the checks refuse it
    fields["no_rope_layers"] = [1] * num_layers if is_count else None
    renamed = [str(name).replace("Llama", "SmolLM3") for name in fields.get("architectures") or []]
    fields["architectures"] = renamed or None
    return fields


def superseded(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Take away what the file says about things that an override speaks of."""
    given = {name for name, value in overrides.items() if value is not None}
    if "num_labels" in given and len(fields.get("id2label") or ()) == overrides["num_labels"]:
        given.discard("num_labels")  # the same number: the names stay
    gone = {old for name in given for old in _SUPERSEDES.get(name, ())}
    kept = {name: value for name, value in fields.items() if name not in gone}
    if given & set(_ROPE_DICTS):
        kept = _without_rope_dicts(kept)
    if "rope_theta" in given:
        for name in _ROPE_DICTS:
            if isinstance(part := kept.get(name), Mapping):
                kept[name] = {key: value for key, value in part.items() if key != "rope_theta"} or None
    return kept


def _without_rope_dicts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Take the file's RoPE settings away, but keep its theta: the base belongs to the weights."""
    kept = {key: value for key, value in fields.items() if key not in _ROPE_DICTS}
    for name in _ROPE_DICTS:
        part = fields.get(name)
        if kept.get("rope_theta") is None and isinstance(part, Mapping):
            kept["rope_theta"] = part.get("rope_theta")
    return kept
