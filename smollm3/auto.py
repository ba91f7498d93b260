"""The page's words: AutoConfig, AutoTokenizer and the AutoModels, by name or path of a checkpoint.

Each is a door to the one SmolLM3 class behind it. A checkpoint that is neither SmolLM3 nor Llama-shaped is a
ConfigError that names its model_type.
"""

from os import PathLike, fspath
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from smollm3.checkpoint.hub import resolve
from smollm3.checkpoint.source import open_checkpoint
from smollm3.errors import ParameterError
from smollm3.model.config import SmolLM3Config
from smollm3.model.heads import (
    SmolLM3ForQuestionAnswering,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
)
from smollm3.model.module import SmolLM3PreTrainedModel
from smollm3.model.smollm3 import SmolLM3ForCausalLM, SmolLM3Model
from smollm3.tokenization import SmolLM3Tokenizer

Model = TypeVar("Model", bound=SmolLM3PreTrainedModel)
Name = str | PathLike[str]
_WHERE = ("revision", "cache_dir", "token", "local_files_only", "subfolder")


class _Auto:
    """A class that is a door: it has no instances."""

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not built directly: use {name}.from_pretrained(name_or_path)")


def _text(name: Name) -> str | Path:
    """Keep a Path a Path (it is never a hub's name) and take any other path-like as text."""
    return name if isinstance(name, str | Path) else fspath(name)


class AutoConfig(_Auto):
    """Reads the config of a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Name, **kwargs: Any) -> SmolLM3Config:
        """Read the config of a folder, GGUF file, short name or hub repository.

        `revision`, `cache_dir`, `token`, `local_files_only` and `subfolder` say where; other arguments are
        fields of the config, which win over the file's.
        """
        where = {key: kwargs.pop(key) for key in _WHERE if key in kwargs}
        with open_checkpoint(resolve(pretrained_model_name_or_path, weights=False, **where)) as checkpoint:
            return SmolLM3Config.from_dict(checkpoint.config, **kwargs)


class AutoTokenizer(_Auto):
    """Loads the tokenizer of a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Name, **kwargs: Any) -> SmolLM3Tokenizer:
        """Load a tokenizer; arguments as for SmolLM3Tokenizer.from_pretrained.

        Raises ParameterError for `use_fast=False` (there is no slow one) and `trust_remote_code=True`.
        """
        for name, only in (("use_fast", True), ("trust_remote_code", False)):
            if kwargs.pop(name, only) not in (only, None):
                raise ParameterError(f"{name}={not only} is refused: leave it out")
        return SmolLM3Tokenizer.from_pretrained(_text(pretrained_model_name_or_path), **kwargs)


class _AutoModel(_Auto, Generic[Model]):
    model_class: ClassVar[type[SmolLM3PreTrainedModel]]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Name, **kwargs: Any) -> Model:
        """Load a model; arguments (`dtype`, `device_map`, ...) as for the model class's from_pretrained."""
        model: Any = cls.model_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return model  # type: ignore[no-any-return]

    @classmethod
    def from_config(
        cls,
        config: SmolLM3Config,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
    ) -> Model:
        """Build a model with random weights."""
        if dtype is not None and torch_dtype is not None:
            raise ParameterError("dtype and torch_dtype are two spellings of one thing: give one")
        model: Any = cls.model_class(config)
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        return model.to(dtype or torch_dtype or torch.get_default_dtype())  # type: ignore[no-any-return]


class AutoModel(_AutoModel[SmolLM3Model]):
    """The model without a head."""

    model_class = SmolLM3Model


class AutoModelForCausalLM(_AutoModel[SmolLM3ForCausalLM]):
    """The model that generates text."""

    model_class = SmolLM3ForCausalLM


class AutoModelForSequenceClassification(_AutoModel[SmolLM3ForSequenceClassification]):
    """The model that labels a text."""

    model_class = SmolLM3ForSequenceClassification


class AutoModelForTokenClassification(_AutoModel[SmolLM3ForTokenClassification]):
    """The model that labels each token."""

    model_class = SmolLM3ForTokenClassification


class AutoModelForQuestionAnswering(_AutoModel[SmolLM3ForQuestionAnswering]):
    """The model that finds an answer in a text."""

    model_class = SmolLM3ForQuestionAnswering
