"""What a person can set about an answer, by option or by `/set`: names, values from text, checks.

In: a name and a text, or values. Out: a new frozen Settings. Knows no terminal and no model; None means
"whatever the checkpoint's generation_config.json says".
"""

import dataclasses
import typing
from dataclasses import dataclass
from types import NoneType
from typing import Any

from smollm3.engine.params import SamplingParams
from smollm3.errors import ParameterError

DEFAULT_MAX_NEW_TOKENS = 4096
_ON = {"on", "true", "yes", "1"}
_OFF = {"off", "false", "no", "0"}
_UNSET = {"default", "none"}
HELP = {
    "max_new_tokens": "longest answer in tokens (4096, or what is left)",
    "do_sample": "draw tokens by chance, or take the likeliest",
    "temperature": "0 takes the likeliest token, 1 follows the model",
    "top_k": "draw from the k likeliest tokens; 0 is off",
    "top_p": "draw from the likeliest that share this chance",
    "min_p": "drop tokens below this share of the likeliest",
    "repetition_penalty": "above 1: avoid tokens that were used before",
    "presence_penalty": "subtracted once from tokens of the answer",
    "frequency_penalty": "subtracted for each use in the answer",
    "seed": "makes drawn answers repeatable",
    "stop": "a text that ends the answer",
    "thinking": "think before answering, where the model can",
    "show_thinking": "show the thoughts, or fold them into one line",
    "markdown": "render markdown, or show the text as it is",
}


@dataclass(frozen=True)
class Settings:
    """The settings of an answer; `HELP` has a line on each."""

    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    thinking: bool | None = None
    show_thinking: bool = True
    markdown: bool = True

    def __post_init__(self) -> None:
        numbers = {k: v for k, v in self.sampling().items() if v is not None and k != "max_new_tokens"}
        SamplingParams(max_new_tokens=1 if self.max_new_tokens is None else self.max_new_tokens, **numbers)
        if any(not text for text in self.stop):
            raise ParameterError(
                "stop: an empty text would end every answer at once; give at least one character"
            )

    def sampling(self) -> dict[str, Any]:
        """Return the fields that decide how tokens are chosen, by their names in generation_config.json.

        Asking for a way to draw asks for drawing, unless `do_sample` says otherwise.
        """
        shared = {f.name for f in dataclasses.fields(SamplingParams)}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name in shared}
        draws = any(values[name] is not None for name in ("temperature", "top_k", "top_p", "min_p"))
        if values["do_sample"] is None and draws:
            values["do_sample"] = values["temperature"] != 0
        return values

    def with_text(self, name: str, text: str) -> "Settings":
        """Return the settings with `name` set to what `text` says. Raises ParameterError in one line."""
        name = name.replace("-", "_")
        if name not in NAMES:
            raise ParameterError(f"there is no setting {name!r}: choose from {', '.join(NAMES)}")
        return dataclasses.replace(self, **{name: _parse(name, text.strip())})

    def shown(self, name: str) -> str:
        """Return the value of a setting as `/show` prints it."""
        value = getattr(self, name)
        if value is None:
            return "default"
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, tuple):
            return " ".join(repr(text) for text in value) or "none"
        return str(value)


NAMES: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(Settings))
_KINDS = typing.get_type_hints(Settings)


def _parse(name: str, text: str) -> Any:
    kinds = set(typing.get_args(_KINDS[name])) or {_KINDS[name]}
    if text.lower() in _UNSET and name != "stop":
        return getattr(Settings, name)
    if name == "stop":
        return () if text.lower() in _UNSET else (_unescaped(text),)
    if bool in kinds:
        return _parse_switch(name, text)
    kind = float if float in kinds else int
    try:
        return kind(text)
    except ValueError:
        wanted = "a number" if kind is float else "a whole number"
        way_out = " or 'default'" if NoneType in kinds else ""
        raise ParameterError(f"{name} {text!r}: give {wanted}{way_out}") from None


def _parse_switch(name: str, text: str) -> bool:
    if text.lower() in _ON:
        return True
    if text.lower() in _OFF:
        return False
    raise ParameterError(f"{name} {text!r}: give on or off")


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")
