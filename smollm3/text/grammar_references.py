"""The subschemas of one JSON schema in; its `$ref`s resolved, and schemas refused that no finite value fits.

A reference may lead back to its own schema as long as the value has a way to end: an optional property, an
empty array, another choice.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from smollm3.text.grammar_keywords import TYPES, refuse

Path = tuple[str, ...]


def path_of(pointer: str) -> Path:
    """`#/$defs/a~1b` -> ("$defs", "a/b")."""
    tokens = unquote(pointer).split("/")[1:]
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in tokens)


def pointer_to(path: Path, prefix: str = "") -> str:
    """("$defs", "a/b") -> `#/$defs/a~1b`, below `prefix`."""
    return "#" + prefix + "".join("/" + quote(_escaped(token), safe="$") for token in path)


def place(where: str, path: Path) -> str:
    """A path as error messages show it."""
    return where + ("#" + "".join("/" + _escaped(token) for token in path) if path else "")


def _escaped(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1")


class References:
    """`schemas`: every subschema by its path; `targets`: the path each `$ref` names, by its schema's path."""

    def __init__(self, schemas: Mapping[Path, Any], targets: Mapping[Path, Path], where: str) -> None:
        self._schemas = schemas
        self._where = where
        self._target_of = {}
        for path, target in targets.items():
            if target not in schemas:
                refuse(place(where, (*path, "$ref")), f"{pointer_to(target)!r} leads to no schema")
            self._target_of[id(schemas[path])] = schemas[target]

    def check(self) -> None:
        """Refuse references that go in circles, and values that cannot end."""
        self._check(self._stands_alone, "the reference goes in a circle: put a property or an item between")
        self._check(
            self._can_end, "no value can match and end: leave the property optional, or give another choice"
        )

    def _check(self, holds: Callable[[Any, set[int]], bool], problem: str) -> None:
        """Find for which schemas `holds` follows step by step, and refuse the first of the others."""
        done: set[int] = set()
        pending = list(self._schemas.items())
        while True:
            # Forwards and backwards in turn: a chain of references takes few rounds either way.
            rest = []
            for path, schema in reversed(pending):
                if schema is not False and holds(schema, done):
                    done.add(id(schema))
                else:
                    rest.append((path, schema))
            if len(rest) == len(pending):
                break
            pending = rest
        for path, schema in self._schemas.items():
            if schema is not False and id(schema) not in done:
                refuse(place(self._where, path), problem)

    def _in_place(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        """The schemas that hold for the same value."""
        if "$ref" in schema:
            yield self._target_of[id(schema)]
        for keyword in ("allOf", "anyOf", "oneOf"):
            yield from schema.get(keyword, ())

    def _stands_alone(self, schema: Mapping[str, Any], done: set[int]) -> bool:
        return all(part is False or id(part) in done for part in self._in_place(schema))

    def _can_end(self, schema: Mapping[str, Any], done: set[int]) -> bool:
        """Whether some value of the schema is finite, as far as `done` tells."""
        if "$ref" in schema and id(self._target_of[id(schema)]) not in done:
            return False
        if not all(id(part) in done for part in schema.get("allOf", ())):
            return False
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema and not any(id(part) in done for part in schema[keyword]):
                return False
        if "const" in schema or "enum" in schema:
            return True
        types = schema.get("type", TYPES)
        types = {types} if isinstance(types, str) else set(types)
        if types - {"object", "array"}:
            return True
        return ("object" in types and _object_ends(schema, done)) or (
            "array" in types and _array_ends(schema, done)
        )


def _object_ends(schema: Mapping[str, Any], done: set[int]) -> bool:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    needed = [properties.get(name, others) for name in schema.get("required", ())]
    return all(part is None or id(part) in done for part in needed)


def _array_ends(schema: Mapping[str, Any], done: set[int]) -> bool:
    firsts, others = schema.get("prefixItems", []), schema.get("items")
    num_items = schema.get("minItems", 0)
    needed = firsts[:num_items] + [others] * (num_items > len(firsts))
    return all(part is None or id(part) in done for part in needed)
