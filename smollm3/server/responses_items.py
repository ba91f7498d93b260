"""The input of /v1/responses: a text or items in, each checked; chat messages out."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from smollm3.server.fields import Fields, only, refuse
from smollm3.server.sampling_fields import Label, NotSupported

MAX_ITEMS = 10_000
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")
_FIELDS_OF_TYPE: dict[str, tuple[set[str], set[str]]] = {  # required, optional
    "message": ({"role", "content"}, set()),
    "function_call": ({"call_id", "name", "arguments"}, set()),
    "function_call_output": ({"call_id", "output"}, {"name"}),
    "reasoning": (set(), {"content", "summary"}),
}


def _as_parts(value: object) -> object:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


def _only_text(part: object) -> object:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        refuse(f"parts of type {kind!r} are not supported: the model reads text only", "type")
    return part


class ItemPart(Fields):
    """A part of an item's text."""

    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    text: str | None = None
    refusal: str | None = None
    # What comes back of an answer.
    annotations: Annotated[object, AfterValidator(only(None, []))] = None
    logprobs: Annotated[list[dict[str, Any]], Field(max_length=100_000)] | None = None

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        wanted, other = ("refusal", "text") if self.type == "refusal" else ("text", "refusal")
        if getattr(self, wanted) is None:
            refuse("required: send it", wanted)
        if getattr(self, other) is not None:
            refuse(f"a part of type {self.type} has none: leave it out", other)
        return self

    @property
    def words(self) -> str:
        return self.text or self.refusal or ""


Parts = Annotated[
    list[Annotated[ItemPart, BeforeValidator(_only_text)]],
    Field(max_length=MAX_ITEMS, fail_fast=True),
    BeforeValidator(_as_parts),
]


def _known_type(item: object) -> object:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if isinstance(kind, str) and kind not in _FIELDS_OF_TYPE:
        refuse(f"items of type {kind!r} are not supported: send {', '.join(_FIELDS_OF_TYPE)}", "type")
    return item


class Item(Fields):
    """One item of any type; which other fields it has depends on it."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts | None = None
    call_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    arguments: str | None = None
    output: Parts | None = None
    summary: Parts | None = None
    # What comes back of an answer.
    id: Label | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: NotSupported = None
    encrypted_content: NotSupported = None
    caller: NotSupported = None
    namespace: NotSupported = None
    async_: Annotated[NotSupported, Field(alias="async")] = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        required, optional = _FIELDS_OF_TYPE[self.type]
        for name in ("role", "content", "call_id", "name", "arguments", "output", "summary"):
            given = getattr(self, name) is not None
            if name in required and not given:
                refuse("required: send it", name)
            if given and name not in required | optional:
                refuse(f"an item of type {self.type} has no place for it: leave it out", name)
        if self.arguments is not None and not _spells_object(self.arguments):
            refuse("must be the JSON text of an object", "arguments")
        return self


def _spells_object(text: str) -> bool:
    try:
        return not text.strip() or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _as_items(value: object) -> object:
    if isinstance(value, str):
        if not value.strip():
            refuse("has no text: send at least one character that is no blank")
        return [{"type": "message", "role": "user", "content": value}]
    return value


Items = Annotated[
    list[Annotated[Item, BeforeValidator(_known_type)]],
    Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True),
    BeforeValidator(_as_items),
]


def messages_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the chat messages that items amount to; what an assistant thought, said and called is one."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None  # the assistant's, while it goes on
    for item in items:
        if item.type == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _words(item.output)})
            turn = None
        elif item.type == "message" and item.role != "assistant":
            messages.append({"role": item.role, "content": _words(item.content)})
            turn = None
        else:
            if turn is None or (item.type == "reasoning" and len(turn) > 1) or (
                item.type == "message" and turn.keys() & {"content", "tool_calls"}
            ):  # fmt: skip
                turn = {"role": "assistant"}
                messages.append(turn)
            _add(turn, item)
    return messages


def _add(turn: dict[str, Any], item: Item) -> None:
    if item.type == "reasoning":
        turn["reasoning_content"] = _words(item.content) or _words(item.summary)
    elif item.type == "message":
        turn["content"] = _words(item.content)
    else:
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)


def _words(parts: list[ItemPart] | None) -> str:
    return "".join(part.words for part in parts or ())


def with_instructions(instructions: str | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put instructions first; a system message that would follow them joins them, as models read only one."""
    if not instructions:
        return messages
    if messages and messages[0]["role"] in ("system", "developer"):
        joined = f"{instructions}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": joined}, *messages[1:]]
    return [{"role": "system", "content": instructions}, *messages]


def output_messages(output: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the chat messages of an answer's own items."""
    return messages_of([Item.model_validate(item) for item in output])
