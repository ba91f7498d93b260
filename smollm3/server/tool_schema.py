"""Tools as a request spells them: functions offered, the choice among them, calls sent back; checked.

Knows no grammar: whether a tool's parameters can be followed is found where they are compiled.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from smollm3.server.fields import Fields, refuse

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Fields):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool as chat completions spell it."""

    type: Literal["function"]
    function: Function


class CalledFunction(Fields):
    """What an earlier answer called."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


def _is_object(call: CalledFunction) -> CalledFunction:
    try:
        value = json.loads(call.arguments) if call.arguments.strip() else {}
    except (ValueError, RecursionError):
        refuse("must be the JSON text of an object", "arguments")
    if not isinstance(value, dict):
        refuse("must be the JSON text of an object", "arguments")
    return call


class ToolCallField(Fields):
    """A call in an assistant's message."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"]
    function: Annotated[CalledFunction, AfterValidator(_is_object)]
    index: Annotated[int, Field(ge=0, le=10_000)] | None = None


@dataclass(frozen=True)
class NamedChoice:
    """The one function that must be called."""

    name: str


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


def read_tool_choice(value: object) -> object:
    """Turn OpenAI's two spellings of a named choice into NamedChoice; validators refuse the rest."""
    if value is None or (isinstance(value, str) and value in ("none", "auto", "required")):
        return value
    if not isinstance(value, dict):
        refuse("must be none, auto, required or {'type': 'function', 'function': {'name': ...}}")
    if value.get("type") != "function":
        refuse("must be 'function': other kinds of choice are not supported", "type")
    nested = value.get("function")
    place = "name" if nested is None else "function.name"
    inner = value if nested is None else nested
    known = {"type", "name"} if nested is None else {"type", "function"}
    if unknown := sorted(set(value) - known):
        refuse("unknown field: leave it out", unknown[0])
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        refuse("must be the name of one of the tools", place)
    if nested is not None and (unknown := sorted(set(inner) - {"name"})):
        refuse("unknown field: leave it out", f"function.{unknown[0]}")
    return NamedChoice(inner["name"])


def check_tools(
    tools: list[Tool] | None, choice: ToolChoice | None, *, name_field: str = "function.name"
) -> None:
    """Refuse names that come twice, and a choice that the tools do not offer."""
    names = [tool.function.name for tool in tools or ()]
    for idx, name in enumerate(names):
        if name in names[:idx]:
            refuse(f"the name {name!r} comes twice", f"tools[{idx}].{name_field}")
    if not names and choice not in (None, "none", "auto"):
        refuse("needs tools to choose from", "tool_choice")
    if isinstance(choice, NamedChoice) and choice.name not in names:
        refuse(f"there is no tool {choice.name!r}: name one of {', '.join(names)}", "tool_choice")
