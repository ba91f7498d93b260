"""Chat messages in every shape that callers send, in; role and text that no template can drop, out.

Tool calls, reasoning, tool results and content parts become the text that SmolLM3 itself writes. Each text is
kept in pieces, so that `prompt.py` can tell the tags written here from tags that somebody spelled in content.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypedDict

from smollm3.errors import PromptError

CODE_TOOL_NAME = "python"
"""The tool that a `<code>` block calls, with the one argument `code`."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
          "tool": "tool", "function": "tool"}  # fmt: skip
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_OWN_TAGS = re.compile(r"(</?(?:think|tool_call|code)>)")


class Message(TypedDict, total=False):
    """One message as callers may write it; `role` is required, the rest depends on it."""

    role: str
    content: str | Sequence[Mapping[str, Any]] | None
    reasoning_content: str | None
    tool_calls: Sequence[Mapping[str, Any]] | None
    tool_call_id: str
    name: str


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a message's text; the tags in it are real ones only where it is `trusted`."""

    text: str
    trusted: bool = False


@dataclasses.dataclass(frozen=True)
class Turn:
    """A message as a template gets it: a role and a text in pieces."""

    role: str
    pieces: tuple[Piece, ...]

    @property
    def content(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def normalise(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Turn messages into dicts of `role` and `content`, both text.

    An assistant's reasoning and tool calls are written into its content as `<think>` and `<tool_call>`;
    a tool's result becomes a user turn with a `<tool_response>`, as SmolLM3 reads it. Parts are joined,
    None is empty text. A PromptError names the message that cannot be text (images, unknown roles, ...).
    """
    return [{"role": turn.role, "content": turn.content} for turn in turns(messages)]


def turns(messages: Sequence[Any]) -> list[Turn]:
    """Turn messages into roles and pieces of text; see `normalise`."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise PromptError("messages must be a non-empty list of {'role': ..., 'content': ...}")
    name_of_call: dict[str, str] = {}
    return [_turn(message, f"messages[{idx}]", name_of_call) for idx, message in enumerate(messages)]


def _turn(message: Any, where: str, name_of_call: dict[str, str]) -> Turn:
    if dataclasses.is_dataclass(message) and not isinstance(message, type):
        message = dataclasses.asdict(message)
    elif callable(dump := getattr(message, "model_dump", None)):
        message = dump()
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is a {type(message).__name__}: pass a dict with role and content")
    role = _ROLES.get(message["role"]) if isinstance(message.get("role"), str) else None
    if role is None:
        _refuse(where, f"has the role {message.get('role')!r}: use system, user, assistant or tool")
    for field in ("images", "audio", "videos"):
        if message.get(field):
            _refuse(where, f"carries {field}: the model reads text only")
    text = _content_text(message, where)
    if role == "tool":
        return Turn("user", tuple(_tool_result(message, text, where, name_of_call)))
    if role == "assistant":
        return Turn(role, tuple(_assistant(message, text, where, name_of_call)))
    if message.get("tool_calls"):
        _refuse(where, f"has tool_calls but the role {role}: only the assistant calls tools")
    return Turn(role, (Piece(text),))


def _content_text(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    if content is None:
        content = message.get("refusal") or ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        _refuse(where, f"has content of type {type(content).__name__}: pass text or a list of text parts")
    return "".join(_part_text(part, f"{where}.content[{idx}]") for idx, part in enumerate(content))


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
    text = part.get(_TEXT_PARTS[kind]) if isinstance(part, Mapping) and kind in _TEXT_PARTS else None
    if not isinstance(text, str):
        _refuse(
            where,
            f"is of type {kind!r} and has no text: the model reads parts {{'type': 'text', 'text': ...}}",
        )
    return text


def _assistant(
    message: Mapping[str, Any], text: str, where: str, name_of_call: dict[str, str]
) -> list[Piece]:
    """The assistant's turn as the model writes it: thoughts, words, calls."""
    pieces: list[Piece] = []
    reasoning = next((message[name] for name in _REASONING_FIELDS if message.get(name)), "")
    if not isinstance(reasoning, str):
        _refuse(where, f"has reasoning of type {type(reasoning).__name__}: pass text")
    if reasoning and not ("</think>" in text and reasoning.strip() in text):
        pieces += [
            Piece("<think>", True),
            Piece(f"\n{reasoning.strip()}\n"),
            Piece("</think>", True),
            Piece("\n"),
        ]
        text = text.lstrip("\n")
    # The model's own words come back as it wrote them: there its tags are real.
    words = [Piece(part, bool(_OWN_TAGS.fullmatch(part))) for part in _OWN_TAGS.split(text) if part]
    pieces += words
    calls = message.get("tool_calls") or []
    if message.get("function_call"):
        calls = [*calls, message["function_call"]]
    if not isinstance(calls, list | tuple):
        _refuse(where, f"has tool_calls of type {type(calls).__name__}: pass a list")
    for idx, call in enumerate(calls):
        if (words or idx) and not (pieces[-1].text.endswith("\n")):
            pieces.append(Piece("\n"))
        pieces += _call(call, f"{where}.tool_calls[{idx}]", name_of_call)
    return pieces


def _call(call: Any, where: str, name_of_call: dict[str, str]) -> list[Piece]:
    """One tool call, in OpenAI's nested shape or flat with name and arguments."""
    if dataclasses.is_dataclass(call) and not isinstance(call, type):
        call = dataclasses.asdict(call)
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        _refuse(where, "names no function: pass {'function': {'name': ..., 'arguments': ...}}")
    if isinstance(call.get("id"), str):
        name_of_call[call["id"]] = name
    arguments = _arguments(function.get("arguments"), where)
    code = arguments.get("code")
    if name == CODE_TOOL_NAME and len(arguments) == 1 and isinstance(code, str):
        return [Piece("<code>", True), Piece(f"\n{code}\n"), Piece("</code>", True)]
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return [Piece("<tool_call>", True), Piece(f"\n{text}\n"), Piece("</tool_call>", True)]


def _arguments(arguments: Any, where: str) -> Mapping[str, Any]:
    """Arguments as an object, from an object or from its JSON text."""
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments) if arguments.strip() else {}
        json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        _refuse(where, "has arguments that are not JSON: pass an object or its JSON text")
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        _refuse(where, f"has arguments of type {type(arguments).__name__}: pass an object or its JSON text")
    return arguments


def _tool_result(
    message: Mapping[str, Any], text: str, where: str, name_of_call: dict[str, str]
) -> list[Piece]:
    call_id = message.get("tool_call_id")
    name = message.get("name") or (name_of_call.get(call_id) if isinstance(call_id, str) else None)
    if call_id is not None and name is None:
        _refuse(
            where, f"answers the tool call {call_id!r}, which no earlier message makes: give the tool's name"
        )
    if name is not None:
        if not isinstance(name, str):
            _refuse(where, f"has a name of type {type(name).__name__}: pass text")
        value = text if _is_json_container(text) else json.dumps(text, ensure_ascii=False)
        text = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "content": {value}}}'
    return [Piece("<tool_response>", True), Piece(f"\n{text}\n"), Piece("</tool_response>", True)]


def _is_json_container(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _refuse(where: str, what: str) -> NoReturn:
    raise PromptError(f"{where} {what}")
