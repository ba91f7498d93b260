"""The body of a `<tool_call>` in, its calls out: JSON, or the Python literal that models write instead."""

import ast
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any

_PYTHON_NAMES = {"true": True, "false": False, "null": None}
_BLANK = re.compile(r"\s*")
_DECODER = json.JSONDecoder(parse_constant=lambda name: _not_json(name))


@dataclass(frozen=True)
class ToolCall:
    """A call the model makes: `arguments` is the JSON text of an object, `idx` counts the calls."""

    name: str
    arguments: str
    idx: int = 0
    closed: bool = True
    """Whether the model closed the call itself; a call cut off after its last brace is not."""


def read_calls(body: str, *, python_chars: int) -> tuple[list[tuple[str, str]], str]:
    """Read the (name, arguments) of every call in a body, and the text that follows them.

    The list is empty for a body that is no call. A Python literal may have `python_chars` characters.
    """
    start = _blank_end(body, 0)
    if body[start : start + 1] not in ("{", "["):
        return [], ""
    try:
        value, end = _DECODER.raw_decode(body, start)
    except (ValueError, RecursionError):
        if len(body) > python_chars:
            return [], ""
        value, end = _python_literal(body.strip()), len(body)
    calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
    found = [call for call in calls if call is not None]
    return (found, body[end:].strip()) if len(found) == len(calls) else ([], "")


def _blank_end(text: str, start: int) -> int:
    match = _BLANK.match(text, start)
    return match.end() if match else start


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _call(value: Any) -> tuple[str, str] | None:
    """Check one call: a name, and arguments as an object or as its JSON text."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = _object_of(arguments)
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    try:
        return value["name"], json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None


def _object_of(text: str) -> Any:
    if not text.strip():
        return {}
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


class _JsonNames(ast.NodeTransformer):
    """JSON's true, false and null inside a Python literal."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_PYTHON_NAMES[node.id]) if node.id in _PYTHON_NAMES else node


def _python_literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            # A stray backslash in the model's text is no concern of the reader's.
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval")
            return ast.literal_eval(_JsonNames().visit(tree))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
