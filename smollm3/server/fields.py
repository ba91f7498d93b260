"""What every request schema stands on: strict fields, and errors that name the field as OpenAI's `param`.

Nothing is ignored: a field that is unknown, of another type or out of range is a RequestError.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from smollm3.server.errors import RequestError


class Fields(BaseModel):
    """A JSON object of a request: no unknown keys, no converted types, no infinite numbers."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True, populate_by_name=False
    )


Schema = TypeVar("Schema", bound=Fields)


def read(schema: type[Schema], body: Mapping[str, Any]) -> Schema:
    """Return the request that `body` spells, or raise a RequestError that names the field."""
    try:
        return schema.model_validate(dict(body))
    except ValidationError as error:
        # The first one is enough to mend, and lists stop at their first fault.
        first = error.errors(include_url=False, include_input=False)[0]
    path = _path(first["loc"], body, str(first["type"]))
    field = (first.get("ctx") or {}).get("field")
    if field:
        path += field if field.startswith("[") or not path else f".{field}"
    raise RequestError(f"{path}: {_reason(first, schema)}", param=path)


def refuse(reason: str, field: str = "") -> NoReturn:
    """Raise what a validator raises; `field` is appended to the path of what is being validated."""
    raise PydanticCustomError("refused", "{reason}", {"reason": reason, "field": field})


def only(*values: object) -> Callable[[object], object]:
    """Return a validator for what OpenAI has and this server has not: the values that change nothing."""

    def check(value: object) -> object:
        if any(type(value) is type(allowed) and value == allowed for allowed in values):
            return value
        shown = " or ".join(repr(allowed) for allowed in values)
        refuse("not supported: leave it out" + (f" or pass {shown}" if shown else ""))

    return check


def _path(loc: tuple[int | str, ...], body: Any, kind: str) -> str:
    """Spell a place in the body, such as `messages[0].content[1].type`; what is no key of it is left out."""
    path = ""
    value = body
    for place, part in enumerate(loc):
        if isinstance(value, Mapping) and (part in value or (kind == "missing" and place == len(loc) - 1)):
            path += f".{part}" if path else str(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if part < len(value) else None
    return path


_WORDS = {
    "missing": "required: send it",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "finite_number": "must be a finite number",
    "string_unicode": "must be whole characters",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "too_long": "must have at most {max_length} entries",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
}


def _reason(error: Mapping[str, Any], schema: type[Fields]) -> str:
    kind, ctx = error["type"], error.get("ctx") or {}
    if kind == "extra_forbidden":
        known = [info.alias or name for name, info in schema.model_fields.items()]
        close = difflib.get_close_matches(str(error["loc"][-1]), known, 1, 0.75)
        hint = f", did you mean {close[0]}?" if close and len(error["loc"]) == 1 else ": leave it out"
        return f"unknown field{hint}"
    if kind == "refused":
        return str(ctx["reason"])
    if kind in _WORDS:
        return _WORDS[kind].format_map(ctx)
    message = str(error["msg"])
    return message.replace("Input should be", "must be").replace("Input should", "must")
