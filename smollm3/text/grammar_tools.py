"""Tools as callers declare them in; the JSON schema of a call of one of them out.

A call is `{"name": ..., "arguments": {...}}`, whose arguments match the tool's parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3.errors import ParameterError
from smollm3.text.grammar_schema import ready_schema

MAX_TOOLS = 128
_NO_PARAMETERS = {"type": "object", "additionalProperties": False}


def call_schema(tools: Sequence[Any], choice: str, patterns: dict[str, str]) -> dict[str, Any]:
    """The schema of a call of any of the tools, or of the one that `choice` names ("required", "auto": any).

    Tools are in OpenAI's nested shape or flat, with `name` and `parameters`. `patterns`: as for
    `ready_schema`. A ParameterError names what is wrong.
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence) or not tools:
        raise ParameterError("tools: give a non-empty list of functions to call")
    if len(tools) > MAX_TOOLS:
        raise ParameterError(f"tools: {len(tools)} are over {MAX_TOOLS}: give fewer")
    functions = [_function(tool, f"tools[{idx}]") for idx, tool in enumerate(tools)]
    names = [name for name, _ in functions]
    for idx, name in enumerate(names):
        if name in names[:idx]:
            raise ParameterError(f"tools[{idx}]: the name {name!r} comes twice")
    if choice not in ("required", "auto", *names):
        raise ParameterError(f"tool choice {choice!r} is none of the tools {', '.join(names)}")
    # All are checked, also those that the choice leaves out.
    calls = [_call(*function, idx, choice, patterns) for idx, function in enumerate(functions)]
    if choice in ("required", "auto"):
        return {"anyOf": calls}
    return calls[names.index(choice)]


def _function(tool: Any, where: str) -> tuple[str, Any]:
    if not isinstance(tool, Mapping):
        raise ParameterError(f"{where} is a {type(tool).__name__}: give an object with a name and parameters")
    if tool.get("type", "function") != "function":
        raise ParameterError(f"{where}: type {tool['type']!r} is not known: only functions can be called")
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 256:
        raise ParameterError(f"{where}: give the function a name of 1 to 256 printable characters")
    parameters = function.get("parameters")
    return name, _NO_PARAMETERS if parameters is None else parameters


def _call(name: str, parameters: Any, idx: int, choice: str, patterns: dict[str, str]) -> dict[str, Any]:
    where = f"tools[{idx}].parameters"
    if not isinstance(parameters, Mapping):
        raise ParameterError(f"{where}: give the JSON schema of an object, not {type(parameters).__name__}")
    types = parameters.get("type", "object")
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise ParameterError(
            f"{where}/type: arguments are an object: write 'object', not {str(types)[:60]!r}"
        )
    prefix = ("" if choice == name else f"/anyOf/{idx}") + "/properties/arguments"
    arguments = ready_schema({**parameters, "type": "object"}, where, patterns, prefix=prefix)
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
