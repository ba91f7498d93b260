"""SmolLM3Config: what a config.json says about the model, under the names of the file.

In: keyword arguments, a dict or a config.json of model_type smollm3 or llama. Out: checked fields, and a dict
that transformers' SmolLM3Config opens with the same behaviour. Unknown fields of a file are carried along in
`extra` and never act; fields that would choose code to run are dropped. Imports no torch.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self

from smollm3.errors import ConfigError
from smollm3.model.config_checks import check_config, check_types
from smollm3.model.config_file import DROPPED, no_duplicates, read_model_type, superseded
from smollm3.model.rope_parameters import one_spelling

DEFAULT_THETA = 2_000_000.0


@dataclass(kw_only=True)
class SmolLM3Config:
    """The fields of SmolLM3's config.json; the defaults are transformers'.

    `no_rope_layers[i]` is 1 where layer i rotates queries and keys, 0 where it has no positions (the name
    says the opposite). `rope_parameters`, `rope_scaling` and `rope_theta` are three spellings of one thing:
    give any, read `rope_parameters`. `attn_implementation` belongs to the run and is not stored.
    """

    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 128004
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = 128001
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_theta: float | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4
    layer_types: list[str] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    tie_word_embeddings: bool = True
    # Heads
    num_labels: int | None = None
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    problem_type: str | None = None
    classifier_dropout: float | None = None
    hidden_dropout: float | None = None
    token_classification_bias: bool = True
    classifier_pooling: str = "attention_mask"
    # The run and the file
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    dtype: str | None = None
    torch_dtype: str | None = None
    architectures: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    attn_implementation: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    model_type = "smollm3"

    def __post_init__(self) -> None:
        self._settle_dtype()
        check_types(self)
        self._settle_ids()
        self._settle_layers()
        self._settle_labels()
        self.rope_parameters = one_spelling(
            self.rope_parameters,
            self.rope_scaling,
            self.rope_theta,
            default_theta=DEFAULT_THETA,
            max_position_embeddings=self.max_position_embeddings,
        )
        self.rope_theta = float(self.rope_parameters["rope_theta"])
        self.rope_scaling = None
        if self.rope_parameters["rope_type"] != "default":
            self.rope_scaling = {k: v for k, v in self.rope_parameters.items() if k != "rope_theta"}
        check_config(self)

    def _settle_dtype(self) -> None:
        names = {
            str(name).removeprefix("torch.") for name in (self.dtype, self.torch_dtype) if name is not None
        }
        if len(names) > 1:
            raise ConfigError(f"dtype={self.dtype!r} and torch_dtype={self.torch_dtype!r} disagree: keep one")
        self.dtype = self.torch_dtype = names.pop() if names else None

    def _settle_ids(self) -> None:
        # A default id only applies where the vocabulary has it; an id that was asked for is checked instead.
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            default: int = getattr(type(self), name)
            if getattr(self, name) == default and self.vocab_size <= default:
                setattr(self, name, None)

    def _settle_layers(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_size {self.hidden_size} does not divide by num_attention_heads "
                    f"{self.num_attention_heads}: correct one or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        indices = range(self.num_hidden_layers)
        if self.no_rope_layers is None:
            self.no_rope_layers = [int((i + 1) % self.no_rope_layer_interval != 0) for i in indices]
        if len(self.no_rope_layers) < self.num_hidden_layers:
            raise ConfigError(
                f"no_rope_layers has {len(self.no_rope_layers)} entries for num_hidden_layers="
                f"{self.num_hidden_layers}: give one per layer, or null to derive it from "
                "no_rope_layer_interval"
            )
        if self.layer_types is None:
            slides = self.use_sliding_window and self.sliding_window is not None
            self.layer_types = [
                "sliding_attention" if slides and not self.no_rope_layers[i] else "full_attention"
                for i in indices
            ]

    def _settle_labels(self) -> None:
        if self.id2label is not None:
            if sorted(map(str, self.id2label)) != sorted(map(str, range(len(self.id2label)))):
                raise ConfigError(f"id2label must number its labels from 0, not {list(self.id2label)[:5]}")
            self.id2label = {int(idx): label for idx, label in self.id2label.items()}
            if self.num_labels not in (None, len(self.id2label)):
                raise ConfigError(
                    f"num_labels={self.num_labels}, but id2label names {len(self.id2label)} labels"
                )
        self.num_labels = self.num_labels or (2 if self.id2label is None else len(self.id2label))
        if self.id2label is None:
            self.id2label = {idx: f"LABEL_{idx}" for idx in range(self.num_labels)}
        if self.label2id is None:
            self.label2id = {label: idx for idx, label in self.id2label.items()}

    def use_rope(self, layer_idx: int) -> bool:
        """Whether layer `layer_idx` rotates its queries and keys (False: a NoPE layer)."""
        assert self.no_rope_layers is not None
        return bool(self.no_rope_layers[layer_idx])

    def window(self, layer_idx: int) -> int | None:
        """How many tokens, itself included, a token of layer `layer_idx` looks back at; None: all."""
        assert self.layer_types is not None
        return self.sliding_window if self.layer_types[layer_idx] == "sliding_attention" else None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **overrides: Any) -> Self:
        """Read the contents of a config.json; `overrides` win over it.

        Raises ConfigError for a foreign model_type, a lost `rope_theta`, wrong types and contradictions.
        """
        known = {f.name for f in dataclasses.fields(cls)} - {"extra", "attn_implementation"}
        unknown = sorted(overrides.keys() - known - {"attn_implementation"})
        if unknown:
            raise ConfigError(f"{unknown[0]!r} is not a field of SmolLM3Config")
        fields = {**superseded(read_model_type(data), overrides), **overrides}
        acting = {key: value for key, value in fields.items() if key in known or key in overrides}
        extra = {k: v for k, v in fields.items() if k not in acting and k not in DROPPED and k[:1] != "_"}
        _refuse_lost_theta(acting)
        return cls(**acting, extra=extra)

    @classmethod
    def from_json_file(cls, path: str | PathLike[str], **overrides: Any) -> Self:
        """Read a config.json. Raises ConfigError when it is missing, no JSON object or contradictory."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=no_duplicates)
        except FileNotFoundError:
            raise ConfigError(f"{path} is missing: a model folder needs its config.json") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} must hold one JSON object, not a {type(data).__name__}")
        try:
            return cls.from_dict(data, **overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json stores; RoPE settings in both spellings, so that older readers agree."""
        data: dict[str, Any] = _plain(self.extra)
        skipped = {"extra", "attn_implementation", "num_labels", "torch_dtype"}
        for item in dataclasses.fields(self):
            if item.name not in skipped:
                data[item.name] = _plain(getattr(self, item.name))
        data["model_type"] = self.model_type
        data["torch_dtype"] = self.dtype
        if self.head_dim == self.hidden_size // self.num_attention_heads:
            del data["head_dim"]
        for name in ("quantization_config", "dtype", "torch_dtype", "classifier_dropout", "hidden_dropout"):
            if data[name] is None:
                del data[name]
        return data

    def to_json_string(self) -> str:
        """Return `to_dict()` as the text of a config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


def _plain(value: Any) -> Any:
    """Copy what JSON can hold; the keys of an object become strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _refuse_lost_theta(fields: Mapping[str, Any]) -> None:
    """Raise ConfigError when RoPE layers have no theta: transformers would rotate by its default instead."""
    layers = fields.get("no_rope_layers")
    if isinstance(layers, list) and layers and not any(layers):
        return
    one_spelling(
        fields.get("rope_parameters"),
        fields.get("rope_scaling"),
        fields.get("rope_theta"),
        default_theta=None,
        max_position_embeddings=fields.get("max_position_embeddings") or 1,
    )
