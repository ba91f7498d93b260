"""The JSON-schema keywords that an answer can be held to, and how the value of each is checked.

Each check gets the value and its place (`schema#/properties/city/minLength`) and raises a ParameterError that
names it.
"""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NoReturn

from smollm3.errors import ParameterError
from smollm3.text.grammar_patterns import UNWRITABLE, check_json_pattern

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
ANNOTATIONS = frozenset({
    "$schema", "$comment", "title", "description", "default", "examples", "example", "deprecated", "readOnly",
    "writeOnly", "contentMediaType", "contentEncoding", "contentSchema", "discriminator",
})  # fmt: skip
"""Keywords that restrict no value: they are for the reader of the schema."""
MAX_COUNT = {
    "minItems": 10_000,
    "maxItems": 10_000,
    "minLength": 10_000,
    "maxLength": 100_000,
    "minProperties": 1,
    "maxProperties": 10_000,
}
"""Upper limits; more than one property of any name cannot be asked for, because names may come twice."""
MAX_ENUM = 5_000
MAX_EXACT_INTEGER = 2**53
MAX_WITH_FRACTION = 2**40
MAX_REMAINDERS = 150
"""Of all `multipleOf` together: the matcher has a state for each remainder, or pair where two are merged."""
MAX_OPTIONAL = 300
"""Optional properties of one object: after each name any later one may come."""
SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
SCHEMA_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
SCHEMAS = ("items", "additionalProperties")
_INSTEAD = {
    "nullable": "add 'null' to type",
    "additionalItems": "use prefixItems and items",
    "if": "use anyOf",
    "not": "use enum or pattern to say what is allowed",
    "id": "leave it out and refer with '#/...'",
    "$id": "leave it out and refer with '#/...'",
    "$anchor": "leave it out and refer with '#/...'",
}


def refuse(where: str, what: str) -> NoReturn:
    raise ParameterError(f"{where}: {what}")


def is_annotation(keyword: str) -> bool:
    return keyword in ANNOTATIONS or keyword.startswith("x-")


def check_keyword(keyword: str, value: Any, where: str) -> None:
    """Refuse a keyword that is not supported, and a value that is none of its values."""
    if keyword == "uniqueItems" and value is False:
        return
    check = _CHECKS.get(keyword)
    if check is None:
        advice = _INSTEAD.get(keyword, "leave it out, and check the answer yourself")
        refuse(where, f"the keyword {keyword!r} is not supported: {advice}")
    check(value, where)


def _check_type(value: Any, where: str) -> None:
    names = value if isinstance(value, list) else [value]
    if not names or any(not isinstance(name, str) or name not in TYPES for name in names):
        refuse(where, f"{_short(value)} is no type: use one or a list of {', '.join(TYPES)}")


def _check_enum(value: Any, where: str) -> None:
    if not isinstance(value, list) or not value:
        refuse(where, "give a non-empty list of values")
    if len(value) > MAX_ENUM:
        refuse(where, f"{len(value)} values are over {MAX_ENUM}: use a pattern")
    for item in value:
        _check_const(item, where)


def _check_const(value: Any, where: str) -> None:
    """Numbers are matched as doubles: a large one would come out as another."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, int | float) and abs(item) > MAX_EXACT_INTEGER:
            refuse(where, f"{_short(item)} is beyond 2**53: give it as text")
        if isinstance(item, float):
            _check_fraction(item, where)
        if isinstance(item, str) and UNWRITABLE.search(item):
            refuse(where, f"{_short(item)} has a control character that no answer has: leave it out")
        if isinstance(item, list | dict):
            pending += item
            pending += item.values() if isinstance(item, dict) else ()


def _check_count(value: Any, where: str) -> None:
    keyword = where.rsplit("/", 1)[-1]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        refuse(where, f"{_short(value)} is no whole number of at least 0")
    if value > MAX_COUNT[keyword]:
        refuse(where, f"{_short(value)} is over {MAX_COUNT[keyword]}: lower it or leave it out")


def _check_number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        refuse(where, f"{_short(value)} is no number")
    if abs(value) >= 2**63:
        refuse(where, f"{_short(value)} is beyond 64 bits: lower it or leave it out")
    _check_fraction(value, where)


def _check_fraction(value: float, where: str) -> None:
    if abs(value) > MAX_WITH_FRACTION and value != int(value):
        refuse(where, f"{_short(value)} has a fraction beyond 2**40: round it")


def _check_step(value: Any, where: str) -> None:
    _check_number(value, where)
    if not 1e-6 <= value <= 1_000_000 or num_remainders(value) > MAX_REMAINDERS:
        refuse(where, f"{_short(value)} is no power of ten and has over two digits: check it yourself")


def num_remainders(step: float) -> int:
    """What a `multipleOf` costs: its digits as a number, without zeros at the ends."""
    digits = "".join(map(str, Decimal(repr(step)).as_tuple().digits)).strip("0")
    return int(digits or 0)


def _check_required(value: Any, where: str) -> None:
    if not isinstance(value, list) or any(not isinstance(name, str) for name in value):
        refuse(where, "give a list of names")
    if len(set(value)) < len(value):
        refuse(where, "a name comes twice")


def _check_format(value: Any, where: str) -> None:
    if value not in FORMATS:
        refuse(where, f"{_short(value)} is no format known here: use {', '.join(FORMATS)} or a pattern")


def _check_map(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        refuse(where, "give an object of schemas")
    if where.endswith("/patternProperties"):
        for pattern in value:
            check_json_pattern(pattern, where)


def _check_list(value: Any, where: str) -> None:
    if not isinstance(value, list) or not value:
        refuse(where, "give a non-empty list of schemas")


def _check_schema(value: Any, where: str) -> None:
    if isinstance(value, list):
        refuse(where, "a list of schemas goes into prefixItems")


def _check_ref(value: Any, where: str) -> None:
    if not isinstance(value, str):
        refuse(where, "a reference is text")
    if value != "#" and not value.startswith("#/"):
        refuse(where, f"{_short(value)} is not inside this schema: only '#' and '#/...' are followed")


def _check_pattern(value: Any, where: str) -> None:
    check_json_pattern(value, where)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of over 30 digits"
    return text if len(text) <= 60 else text[:57] + "..."


_CHECKS: Mapping[str, Callable[[Any, str], None]] = {
    "type": _check_type,
    "enum": _check_enum,
    "const": _check_const,
    "required": _check_required,
    "format": _check_format,
    "pattern": _check_pattern,
    "$ref": _check_ref,
    "multipleOf": _check_step,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _check_number),
    **dict.fromkeys(MAX_COUNT, _check_count),
    **dict.fromkeys(SCHEMA_MAPS, _check_map),
    **dict.fromkeys(SCHEMA_LISTS, _check_list),
    **dict.fromkeys(SCHEMAS, _check_schema),
}
