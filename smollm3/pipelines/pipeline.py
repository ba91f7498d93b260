"""What every pipeline shares: one input, a list or an iterator in; one result, a list or an iterator out.

A pipeline holds a model, its tokenizer and the options it was built with; a call may override any of them.
The order of the results is the order of the inputs. Knows no task.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch

from smollm3.engine.params import check_number
from smollm3.errors import ParameterError, PromptError
from smollm3.model.module import SmolLM3PreTrainedModel
from smollm3.tokenization import SmolLM3Tokenizer

Options = TypeVar("Options")


class Pipeline(ABC, Generic[Options]):
    """Turns inputs into results, `batch_size` inputs per forward pass."""

    task: ClassVar[str]
    accepts: ClassVar[str]  # what one input looks like, for the error when it does not

    def __init__(
        self,
        model: SmolLM3PreTrainedModel,
        tokenizer: SmolLM3Tokenizer,
        *,
        batch_size: int = 1,
        **options: Any,
    ) -> None:
        check_number("batch_size", batch_size, 1, integer=True)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.options = self.choose(self.defaults(), options)

    @abstractmethod
    def defaults(self) -> Options:
        """The options that hold when nobody asks for anything."""

    @abstractmethod
    def choose(self, options: Options, given: Mapping[str, Any]) -> Options:
        """Return `options` with what was given in their place; raises ParameterError for what is unknown."""

    @abstractmethod
    def is_single(self, inputs: object, options: Options) -> bool:
        """Whether this is one input, rather than a collection of them."""

    @abstractmethod
    def run(self, inputs: list[Any], options: Options) -> Iterable[Any]:
        """Yield the result of each input of one batch."""

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """Run one input, a list of them, or (lazily, a batch at a time) whatever an iterator yields."""
        size = self.batch_size if batch_size is None else batch_size
        check_number("batch_size", size, 1, integer=True)
        chosen = self.choose(self.options, options)
        if self.is_single(inputs, chosen):
            return next(self._stream([inputs], chosen, 1))
        if isinstance(inputs, list | tuple):
            return list(self._stream(inputs, chosen, size))
        if isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes | Mapping):
            return self._stream(inputs, chosen, size)
        raise PromptError(
            f"{self.task} takes {self.accepts}, a list or an iterator of them: not {describe(inputs)}"
        )

    def _stream(self, inputs: Iterable[Any], options: Options, batch_size: int) -> Iterator[Any]:
        iterator = iter(inputs)
        while batch := list(islice(iterator, batch_size)):
            for item in batch:
                if not self.is_single(item, options):
                    raise PromptError(f"{self.task} takes {self.accepts}: not {describe(item)}")
            yield from self.run(batch, options)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the model computes in."""
        return next(self.model.parameters()).dtype

    def to(self, device: torch.device | str) -> Self:
        """Move the model."""
        self.model.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the model and its tokenizer in one folder that opens again by its path."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.device}, {self.dtype})"


def choose_fields(task: str, options: Options, given: Mapping[str, Any]) -> Options:
    """Return the dataclass `options` with fields replaced; raises ParameterError for an unknown one."""
    names = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    for name in given:
        if name not in names:
            raise unknown_argument(task, name, names)
    return dataclasses.replace(options, **given)  # type: ignore[type-var]


def unknown_argument(task: str, name: str, known: Iterable[str]) -> ParameterError:
    """The error for an argument that nothing would read."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(names)}"
    return ParameterError(f"{name!r} is no argument of {task}: {hint}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ParameterError unless `value` is one of the words."""
    if value not in (known := list(choices)):
        raise ParameterError(f"{name}={value!r}: give one of {', '.join(map(repr, known))}")


def describe(value: object) -> str:
    """A short name of a wrong input, for an error's one line."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
