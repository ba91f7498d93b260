"""The one way from messages to prompt ids: normalise, render, encode.

What somebody spells in a message stays text: before rendering, the characters that start a special token are
replaced one for one by characters that occur nowhere, so afterwards only the template's own special tokens,
and the tags of the model's own turns, are real. Knows the tokenizer's interface, no model.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain
from typing import Any

from smollm3.errors import ParameterError, PromptError
from smollm3.text.chat_template import reads_variable, render
from smollm3.text.messages import Turn, turns
from smollm3.text.tokenizer import Tokenizer

# Printable, without case, not blank and rare, the rarest first: a template prints them as they are, also by
# repr() and tojson. Private-use characters, which repr() escapes, come last.
_STAND_INS = tuple(
    range(first, last + 1)
    for first, last in (
        (0x17000, 0x187F7),  # Tangut
        (0x13000, 0x1342E),  # Egyptian hieroglyphs
        (0x20000, 0x2A6DF),  # CJK ideographs, extension B
        (0xAC00, 0xD7A3),  # Hangul
        (0xF0000, 0xFFFFD),
    )
)


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as ids; `thinking_open` tells that the text ends inside an open `<think>`."""

    text: str
    ids: list[int]
    thinking_open: bool


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Any] | str, **options: Any) -> list[int]:
    """Give the ids of a prompt; the options are those of `build_prompt`."""
    return build_prompt(tokenizer, messages, **options).ids


def build_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Any] | str,
    *,
    template: str | None = None,
    tools: Sequence[Any] | None = None,
    xml_tools: Sequence[Any] | None = None,
    python_tools: Sequence[Any] | None = None,
    enable_thinking: bool | None = None,
    date: date | str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    allow_special: bool | None = None,
    **variables: Any,
) -> Prompt:
    """Turn chat messages, or a text to complete, into a prompt.

    `template` is Jinja source, "fixed" for our own SmolLM3 template, or None for the tokenizer's. Special
    tokens spelled in messages are text unless `allow_special`; in a plain text, which is the caller's own
    prompt, they are special unless it is False. `continue_final_message` leaves the last
    assistant turn open instead of starting a new one. Raises PromptError, TemplateError or ParameterError.
    """
    if isinstance(messages, str):
        return _text_prompt(tokenizer, messages, allow_special is not False)
    chat = turns(messages)
    if continue_final_message and chat[-1].role != "assistant":
        raise PromptError(f"messages[{len(chat) - 1}] is no assistant turn: continue_final_message needs one")
    source = _template(tokenizer, template, has_tools=bool(tools))
    lists = {"tools": tools, "xml_tools": xml_tools, "python_tools": python_tools}
    _check_read(source, lists, enable_thinking)
    if enable_thinking is not None:
        variables["enable_thinking"] = enable_thinking
    mask = _Mask.none() if allow_special else _Mask.over(tokenizer, [chat, lists, variables], source)
    rendered = render(
        source,
        [{"role": turn.role, "content": _masked_turn(turn, mask)} for turn in chat],
        **{name: mask.deep(list(value)) for name, value in lists.items() if value},
        **{name: mask.deep(value) for name, value in variables.items()},
        date=date,
        add_generation_prompt=add_generation_prompt and not continue_final_message,
        continue_final_message=continue_final_message,
        special_tokens=tokenizer.special_tokens_map,
    )
    text = mask.undo(rendered)
    _check_nothing_dropped(text, chat)
    token_ids = _encode(tokenizer, rendered, text)
    if not token_ids:
        raise PromptError("the chat template renders an empty prompt: check the messages and the template")
    last_open, last_close = rendered.rfind("<think>"), rendered.rfind("</think>")
    at_end = continue_final_message or rendered.rstrip().endswith("<think>")
    return Prompt(text, token_ids, at_end and last_open > last_close)


def _text_prompt(tokenizer: Tokenizer, text: str, special: bool) -> Prompt:
    token_ids = tokenizer.encode(text) if special else tokenizer.encode_plain(text)
    if not text or not token_ids:
        raise PromptError("the prompt is empty: give it at least one character")
    return Prompt(text, token_ids, False)


def _template(tokenizer: Tokenizer, template: str | None, *, has_tools: bool) -> str:
    if template is not None:
        return template
    templates = tokenizer.chat_templates
    source = templates.get("tool_use") if has_tools else None
    source = source or tokenizer.chat_template
    if source is None:
        raise PromptError(
            "this tokenizer has no chat template: pass template=..., or a plain text as the prompt"
        )
    return source


def _check_read(source: str, lists: Mapping[str, Any], enable_thinking: bool | None) -> None:
    """Refuse what the template would silently leave out."""
    for name, value in lists.items():
        if value and not reads_variable(source, name):
            raise PromptError(
                f"this chat template has no place for {name}: use a model or a template that takes them"
            )
    if enable_thinking is not None and not reads_variable(source, "enable_thinking"):
        raise ParameterError("this chat template has no thinking mode: leave enable_thinking out")


def _check_nothing_dropped(text: str, chat: Sequence[Turn]) -> None:
    """Refuse a rendering in which a message is missing: templates leave out what they do not expect.

    The first system message may be edited (flags are cut out of it) and past thinking may be taken out.
    """
    start = 0
    for idx, turn in enumerate(chat):
        content = turn.content.strip()
        if not content or turn.role == "assistant" or (turn.role == "system" and idx == 0):
            continue
        found = text.find(content, start)
        if found < 0 and content not in text:
            raise PromptError(
                f"messages[{idx}] (role {turn.role}) is left out by the chat template: move its text into "
                "another message, or pass template='fixed' for SmolLM3"
            )
        start = max(start, found)


class _Mask:
    """Replaces the characters that make special tokens by stand-ins, one for one, and back."""

    def __init__(self, stand_in_of: Mapping[str, str]) -> None:
        self._do = str.maketrans(dict(stand_in_of))
        self._undo = str.maketrans({stand_in: char for char, stand_in in stand_in_of.items()})

    @classmethod
    def none(cls) -> "_Mask":
        return cls({})

    @classmethod
    def over(cls, tokenizer: Tokenizer, inputs: Any, source: str) -> "_Mask":
        """Choose stand-ins that occur neither in `inputs` nor in the template's source."""
        used = set(chain.from_iterable(_texts(inputs)))
        chars = _telling_chars(tokenizer.added_tokens) & used
        used.update(source)
        free = (chr(code) for code in chain.from_iterable(_STAND_INS) if chr(code) not in used)
        stand_in_of = dict(zip(sorted(chars), free, strict=False))
        if len(stand_in_of) < len(chars):
            raise PromptError(
                "the messages use every rare character there is: pass allow_special=True or less text"
            )
        return cls(stand_in_of)

    def do(self, text: str) -> str:
        return text.translate(self._do) if self._do else text

    def undo(self, text: str) -> str:
        return text.translate(self._undo) if self._undo else text

    def deep(self, value: Any) -> Any:
        """Mask every text in plain data, keys too."""
        if isinstance(value, str):
            return self.do(value)
        if isinstance(value, Mapping):
            return {self.deep(key): self.deep(inner) for key, inner in value.items()}
        return [self.deep(inner) for inner in value] if isinstance(value, list | tuple) else value


def _masked_turn(turn: Turn, mask: _Mask) -> str:
    return "".join(piece.text if piece.trusted else mask.do(piece.text) for piece in turn.pieces)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Turn):
        yield from (piece.text for piece in value.pieces)
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_texts, chain(value.keys(), value.values())))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_texts, value))


def _telling_chars(added_tokens: Iterable[str]) -> set[str]:
    """A small set of characters of which every added token has one, rather punctuation than letters."""
    chars: set[str] = set()
    for token in added_tokens:
        # Tokens of blanks control nothing, and templates strip blanks.
        if token.strip() and chars.isdisjoint(token):
            marks = [char for char in token if not char.isalnum() and not char.isspace()]
            chars.add((marks or [char for char in token if not char.isspace()])[0])
    return chars


def _encode(tokenizer: Tokenizer, rendered: str, text: str) -> list[int]:
    """Encode `text`, taking as special only what is so in `rendered`, its masked form of the same length."""
    patterns = [
        (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
        for token in tokenizer.added_tokens_decoder.values()
        if token.content.strip()
    ]
    special = re.compile("|".join(sorted(patterns, key=len, reverse=True)) or r"(?!)")
    real = [match.span() for match in special.finditer(rendered)]
    if rendered == text or real == [match.span() for match in special.finditer(text)]:
        return tokenizer.encode(text, add_special_tokens=False)
    token_ids: list[int] = []
    end = 0
    for start, stop in real:
        token_ids += tokenizer.encode_plain(text[end:start])
        token_ids += tokenizer.encode(text[start:stop], add_special_tokens=False)
        end = stop
    return token_ids + tokenizer.encode_plain(text[end:])
