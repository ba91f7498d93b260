"""What a forward pass returns.

Each output reads as attributes, as `output["logits"]`, and as a tuple of the fields that are not None (by
index, slice or unpacking), like transformers' outputs. Knows no model.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor

from smollm3.model.cache import Cache


class ModelOutput:
    """Dataclass with tuple and mapping access; fields that are None are not there."""

    def keys(self) -> tuple[str, ...]:
        """Return the names of the fields that are not None, in order."""
        names = (item.name for item in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple(name for name in names if getattr(self, name) is not None)

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def values(self) -> tuple[Any, ...]:
        """Return what `to_tuple` returns."""
        return self.to_tuple()

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Return pairs of name and value of the fields that are not None."""
        return tuple(zip(self.keys(), self.to_tuple(), strict=True))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the field of that name, or `default` where it is None or unknown."""
        return getattr(self, name) if name in self else default

    @overload
    def __getitem__(self, key: str | int) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.keys())


Layers = tuple[Tensor, ...]


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """`last_hidden_state` [B, T, N] after the final norm; `hidden_states` start with the embeddings."""

    last_hidden_state: Tensor
    past_key_values: Cache | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None


@dataclass(eq=False)
class CausalLMOutputWithPast(ModelOutput):
    """`logits` [B, positions kept, V]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None


@dataclass(eq=False)
class SequenceClassifierOutputWithPast(ModelOutput):
    """`logits` [B, num_labels]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None


@dataclass(eq=False)
class TokenClassifierOutput(ModelOutput):
    """`logits` [B, T, num_labels]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None


@dataclass(eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """`start_logits` and `end_logits` [B, T]."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None
