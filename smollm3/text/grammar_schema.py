"""A JSON schema from a stranger in; the same schema, checked, bounded and written out for the compiler, out.

Every keyword is supported, an annotation, or an error that names it and its place: nothing is ignored. Sizes
are limited before anything is compiled. Numbers stay within 64 bits, where every reader can take them.
"""

import math
from collections.abc import Iterator
from typing import Any

from smollm3.text.grammar_keywords import (
    MAX_OPTIONAL,
    MAX_REMAINDERS,
    SCHEMA_LISTS,
    SCHEMA_MAPS,
    SCHEMAS,
    check_keyword,
    is_annotation,
    num_remainders,
    refuse,
)
from smollm3.text.grammar_references import Path, References, path_of, place, pointer_to

MAX_SUBSCHEMAS = 1_000
MAX_SCHEMA_DEPTH = 24
MAX_VALUES = 20_000
MAX_VALUE_DEPTH = 80
MAX_SCHEMA_CHARS = 400_000
LARGEST_NUMBER = 9_200_000_000_000_000_000
"""Under 2**63; a number without limits of its own stays between this and its negative."""
_ANY = "any JSON value"
_DEFINITIONS = {"$defs", "definitions"}
_APPLICATORS = {"$ref", "anyOf", "oneOf", "allOf"}
_OUTPUT_FORM = {
    # One blank, or a line break with its indent: a model cannot lose itself in blanks. Escapes have one form,
    # so that no name can be spelled in a second way.
    "whitespace_pattern": r" |\n[ \t]{0,24}",
    "json_allowed_escapes": 'nrbtf\\"',
}


def ready_schema(schema: Any, where: str, patterns: dict[str, str], *, prefix: str = "") -> dict[str, Any]:
    """Return the schema as the compiler takes it, to stand at the JSON pointer `prefix` of its document.

    patterns: gets each regular expression by its place, for whoever asks which one did not compile. Raises
    ParameterError, which begins with `where` and a pointer, for whatever is wrong, unsupported or too large.
    """
    check_json(schema, where)
    return _Writer(schema, where, prefix, patterns).written()


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as a document of its own: with the form that JSON is written in."""
    return {"x-guidance": _OUTPUT_FORM, **schema}


def check_json(value: Any, where: str) -> None:
    """Refuse what is no JSON, or more of it than is compiled in good time."""
    num_values = num_chars = 0
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        num_values += 1
        if depth > MAX_VALUE_DEPTH:
            refuse(where, f"the schema is nested over {MAX_VALUE_DEPTH} deep: flatten it")
        num_chars += _checked_chars(item, where)
        if isinstance(item, dict):
            if any(not isinstance(key, str) for key in item):
                refuse(where, "a name is no text: names in JSON are text")
            num_chars += sum(_checked_chars(key, where) for key in item)
        if isinstance(item, dict | list):
            pending.extend(
                (inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item)
            )
        if num_values + len(pending) > MAX_VALUES or num_chars > MAX_SCHEMA_CHARS:
            limit = f"{MAX_VALUES} values or {MAX_SCHEMA_CHARS} characters"
            refuse(where, f"the schema is too large (over {limit}): make it smaller")


def _checked_chars(item: Any, where: str) -> int:
    if isinstance(item, str):
        try:
            return len(item.encode("utf-8"))
        except UnicodeEncodeError:
            refuse(where, "a text in the schema has a lone surrogate: remove it")
    if isinstance(item, float) and not math.isfinite(item):
        refuse(where, f"{item} is no JSON number")
    if isinstance(item, int) and abs(item) >= 2**1023:
        refuse(where, "a number in the schema has over 300 digits: lower it")
    if item is not None and not isinstance(item, bool | int | float | dict | list):
        refuse(where, f"a {type(item).__name__} is no JSON value")
    return 1


class _Writer:
    """Writes one schema anew: `schemas` has each new subschema by its path in the old one."""

    def __init__(self, schema: Any, where: str, prefix: str, patterns: dict[str, str]) -> None:
        self._where, self._prefix, self._patterns = where, prefix, patterns
        self._schemas: dict[Path, Any] = {}
        self._targets: dict[Path, Path] = {}
        self._root = self._write(schema, (), 0)

    def written(self) -> dict[str, Any]:
        if self._root is False:
            refuse(self._where, "the schema false allows no value")
        root: dict[str, Any] = self._root
        References(self._schemas, self._targets, self._where).check()
        bounded = [schema for schema in self._schemas.values() if schema is not False]
        self._check_steps(
            [schema for schema in bounded if "multipleOf" in schema], any(map(_merges, bounded))
        )
        # Where schemas are merged, "any value" must stay the compiler's own: a reference cannot be merged
        # with itself.
        explicit = not any(map(_merges, bounded))
        for schema in bounded:
            if explicit:
                self._say_any(schema)
            _bound_numbers(schema)
        if explicit:
            root.setdefault("$defs", {})[_ANY] = self._any_value()
        return root

    def _check_steps(self, schemas: list[dict[str, Any]], merged: bool) -> None:
        costs = [num_remainders(schema["multipleOf"]) for schema in schemas]
        if sum(costs) > MAX_REMAINDERS:
            refuse(self._where, "the values of multipleOf together are too many: check some of them yourself")
        if merged and len(costs) > 1 and max(costs) > 1:
            refuse(self._where, "several multipleOf in a schema with allOf or sibling keywords: give one")

    def _write(self, value: Any, path: Path, depth: int) -> Any:
        where = place(self._where, path)
        if len(self._schemas) >= MAX_SUBSCHEMAS:
            refuse(self._where, f"over {MAX_SUBSCHEMAS} subschemas: make the schema smaller")
        if depth > MAX_SCHEMA_DEPTH:
            refuse(where, f"schemas are nested over {MAX_SCHEMA_DEPTH} deep: flatten them")
        if value is False:
            self._schemas[path] = False
            return False
        if value is True:
            value = {}
        if not isinstance(value, dict):
            refuse(where, f"a schema is an object, true or false, not {type(value).__name__}")
        new: dict[str, Any] = {}
        self._schemas[path] = new
        for keyword, inner in value.items():
            if is_annotation(keyword):
                continue
            inside = (*path, keyword)
            check_keyword(keyword, inner, place(self._where, inside))
            if keyword in ("pattern", "patternProperties"):
                for pattern in [inner] if keyword == "pattern" else inner:
                    self._patterns[place(self._where, inside)] = pattern
            if keyword in SCHEMA_MAPS:
                new[keyword] = {
                    name: self._write(part, (*inside, name), depth + 1) for name, part in inner.items()
                }
            elif keyword in SCHEMA_LISTS:
                parts = enumerate(inner)
                new[keyword] = [self._write(part, (*inside, str(idx)), depth + 1) for idx, part in parts]
            elif keyword in SCHEMAS:
                new[keyword] = self._write(inner, inside, depth + 1)
            elif keyword == "$ref":
                self._targets[path] = path_of(inner)
                new[keyword] = pointer_to(self._targets[path], self._prefix)
            elif keyword != "uniqueItems":
                new[keyword] = _with_whole_numbers(inner)
        if len(new.get("properties", {}).keys() - set(new.get("required", ()))) > MAX_OPTIONAL:
            refuse(where, f"over {MAX_OPTIONAL} optional properties in one object: require some of them")
        return new

    def _say_any(self, schema: dict[str, Any]) -> None:
        """Spell out what a schema leaves open, so that numbers in it are bounded too."""
        any_value = {"$ref": pointer_to(("$defs", _ANY), self._prefix)}
        stated = schema.keys() - _DEFINITIONS
        if not stated:
            schema.update(any_value)
        if not stated or stated & {*_APPLICATORS, "const", "enum"}:
            return
        types = schema.setdefault("type", ["null", "boolean", "number", "string", "array", "object"])
        if "array" in types and "items" not in schema:
            schema["items"] = any_value
        if "object" in types and "additionalProperties" not in schema:
            schema["additionalProperties"] = any_value

    def _any_value(self) -> dict[str, Any]:
        any_value = {"$ref": pointer_to(("$defs", _ANY), self._prefix)}
        number = {"type": "number"}
        _bound_numbers(number)
        return {
            "anyOf": [
                {"type": ["null", "boolean", "string"]},
                number,
                {"type": "array", "items": any_value},
                {"type": "object", "additionalProperties": any_value},
            ]
        }


def _with_whole_numbers(value: Any) -> Any:
    """Write 3.0 as 3, which is matched exactly, in the value of a keyword."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_with_whole_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_whole_numbers(item) for key, item in value.items()}
    return value


def _merges(schema: dict[str, Any]) -> bool:
    """Whether several subschemas hold for one value."""
    applicators = schema.keys() & _APPLICATORS
    others = schema.keys() - _APPLICATORS - _DEFINITIONS
    return bool(applicators) and (len(applicators) > 1 or bool(others) or len(schema.get("allOf", ())) > 1)


def _bound_numbers(schema: dict[str, Any]) -> None:
    types = schema.get("type")
    if isinstance(types, str):
        types = [types]
    if not types or not {"number", "integer"} & set(types) or {"const", "enum"} & schema.keys():
        return
    lows = list(_present(schema, "minimum", "exclusiveMinimum"))
    highs = list(_present(schema, "maximum", "exclusiveMaximum"))
    if not lows and min(highs, default=0) > -LARGEST_NUMBER:
        schema["minimum"] = -LARGEST_NUMBER
    if not highs and max(lows, default=0) < LARGEST_NUMBER:
        schema["maximum"] = LARGEST_NUMBER


def _present(schema: dict[str, Any], *keywords: str) -> Iterator[float]:
    return (schema[keyword] for keyword in keywords if keyword in schema)
