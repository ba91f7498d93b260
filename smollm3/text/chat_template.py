"""Chat template and messages in, prompt text out: what transformers renders, to the byte.

Messages reach the template as they are; `messages.py` makes them safe to drop nothing, `prompt.py` uses both.
Knows no token id.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

from smollm3.errors import ParameterError, PromptError, TemplateError
from smollm3.text.sandbox import Rendered, render_source, sandbox, template_variables
from smollm3.text.template_date import moment

KNOWN_VARIABLES = frozenset({"enable_thinking", "xml_tools", "python_tools", "documents", "tools"})
"""Variables that may be passed to any template, whether it reads them or not, as in transformers."""

_RESERVED_TEXT = """
    messages add_generation_prompt continue_final_message tokenize chat_template template date now
    special_tokens return_dict return_tensors return_assistant_tokens_mask padding truncation
    max_length tokenizer_kwargs caller environment context loop self super varargs kwargs lipsum
    bos_token eos_token pad_token unk_token sep_token cls_token mask_token
"""
RESERVED_NAMES = frozenset(_RESERVED_TEXT.split())
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def render(
    template: str,
    messages: Sequence[Any],
    *,
    tools: Sequence[Any] | None = None,
    xml_tools: Sequence[Any] | None = None,
    python_tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    date: date | str | None = None,
    special_tokens: Mapping[str, Any] | None = None,
    **variables: Any,
) -> str:
    """Render `messages` with `template` (Jinja source, or "fixed" for our own SmolLM3 template).

    `date` pins what `strftime_now` prints (a date, ISO text, None for now). `special_tokens` are names such
    as `bos_token` with their text. `variables` are further ones that the template reads, `enable_thinking`
    above all; a reserved name or one that no part of the template reads is a ParameterError.
    """
    return render_with_spans(
        template, messages, tools=tools, xml_tools=xml_tools, python_tools=python_tools, documents=documents,
        add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message, date=date,
        special_tokens=special_tokens, **variables,
    ).text  # fmt: skip


def render_with_spans(
    template: str,
    messages: Sequence[Any],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    date: date | str | None = None,
    special_tokens: Mapping[str, Any] | None = None,
    **variables: Any,
) -> Rendered:
    """Render as `render` does, and tell which characters are the assistant's by `{% generation %}`."""
    source = template_source(template)
    # A list left out is the same as none: transformers passes `tools` and `documents` always, others never.
    given = {
        name: value for name, value in variables.items() if value is not None or name not in KNOWN_VARIABLES
    }
    _check_names(source, given)
    if continue_final_message and add_generation_prompt:
        raise ParameterError(
            "continue_final_message and add_generation_prompt exclude each other: pass one of them"
        )
    chat = _template_messages(messages)
    if continue_final_message:
        final_text = _tag_final_message(chat)
    rendered = render_source(
        source,
        {
            **_plain(dict(special_tokens or {})),
            "tools": None,
            "documents": None,
            **_plain(given),
            "messages": chat,
            "add_generation_prompt": add_generation_prompt,
        },
        now=moment(date),
    )
    if continue_final_message:
        return Rendered(_cut_at_tag(rendered.text, final_text), rendered.generation_spans)
    return rendered


def template_source(template: str) -> str:
    """Jinja source of a template: "fixed" names our own, anything else is source already."""
    return fixed_template() if template == "fixed" else template


@cache
def fixed_template() -> str:
    """Our own template for SmolLM3, without the deployed one's bugs."""
    return files("smollm3.text").joinpath("fixed_template.jinja").read_text(encoding="utf-8")


def reads_variable(template: str, *names: str) -> bool:
    """Tell whether a template reads any of `names`: what it does not read has no effect on the prompt."""
    return not template_variables(template_source(template)).isdisjoint(names)


def _check_names(source: str, variables: Mapping[str, Any]) -> None:
    reserved = RESERVED_NAMES | frozenset(sandbox().globals)
    for name in variables:
        if name in reserved or name.startswith("_") or not name.isidentifier():
            raise ParameterError(f"template variable {name!r} is reserved: leave it out")
    unread = sorted(set(variables) - KNOWN_VARIABLES - template_variables(source))
    if unread:
        offered = sorted((template_variables(source) | KNOWN_VARIABLES) - reserved)
        raise ParameterError(f"the chat template reads no {unread[0]!r}: it reads {', '.join(offered)}")


def _template_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Copy messages into plain dicts: keys without a value left out, reasoning under each of its names."""
    if isinstance(messages, str | bytes | Mapping) or not len(messages):
        raise PromptError("messages must be a non-empty list of {'role': ..., 'content': ...}")
    chat = []
    for message_idx, message in enumerate(messages):
        plain = _plain(message)
        if not isinstance(plain, dict):
            raise PromptError(
                f"messages[{message_idx}] is a {type(message).__name__}: pass a dict with role and content"
            )
        copy = {key: value for key, value in plain.items() if value is not None}
        reasoning = next((copy[key] for key in _REASONING_FIELDS if key in copy), None)
        if reasoning is not None:
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        chat.append(copy)
    return chat


def _plain(value: Any, depth: int = 0) -> Any:
    """Rebuild a value from plain JSON types, so that a template meets no object with methods of its own."""
    if depth > 100:
        raise PromptError("messages or tools nest deeper than 100 levels: flatten them")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__pos__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, Mapping):
        return {_plain(key, depth + 1): _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, depth + 1) for inner in value]
    if isinstance(value, tuple):
        return tuple(_plain(inner, depth + 1) for inner in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            entry.name: _plain(getattr(value, entry.name), depth + 1) for entry in dataclasses.fields(value)
        }
    if callable(dump := getattr(value, "model_dump", None)):
        return _plain(dump(), depth + 1)
    raise PromptError(
        f"a {type(value).__name__} cannot go into a chat template: pass text, numbers, lists and dicts"
    )


def _tag_final_message(chat: list[dict[str, Any]]) -> str:
    """Mark the end of the last message's text, in place, and return that text."""
    final = chat[-1]
    content = final.get("content")
    if isinstance(content, list | tuple):
        for part in reversed(content):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text: str = part["text"]
                part["text"] = text + _CONTINUE_TAG
                return text
    if not isinstance(content, str):
        raise PromptError(f"messages[{len(chat) - 1}] has no text content to continue: give it some")
    final["content"] = content + _CONTINUE_TAG
    return content


def _cut_at_tag(text: str, final_text: str) -> str:
    tag_start = text.rfind(_CONTINUE_TAG.strip())
    if tag_start < 0 or final_text.strip() not in text:
        raise TemplateError("the chat template does not render the final message, so it cannot be continued")
    if text.startswith(_CONTINUE_TAG, tag_start):
        return text[:tag_start]
    # The template trimmed the message's end, so the blank before the tag is not the message's.
    return text[:tag_start].rstrip()
