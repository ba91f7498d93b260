"""Schemas, patterns, grammars and tools for an answer to follow: broken ones, odd ones, some that explode.

In: a client's random numbers. Out: plain data for response_format and tools.
"""

import random
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, -1e308, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400,
    float("nan"), float("inf"), float("-inf"), "", " ", "x", "1", "\x00", "\ud800", "a" * 5000, [], [[]],
    [None],
    [[[[]]]], {}, {"": None}, {"x": {"y": {}}}, [1, "a", None], "null", [0] * 2000, {"__proto__": {"a": 1}},
)  # fmt: skip


def schema(draw: random.Random) -> Any:
    """Return a JSON schema: odd, broken, explosive, or simply good."""
    deep: Any = {"type": "string"}
    for _ in range(draw.choice((3, 12, 25))):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    wide = {
        f"k{i}": {"type": draw.choice(("string", "number", "boolean"))}
        for i in range(draw.choice((3, 40, 900)))
    }
    many = [{"type": "object", "properties": {f"p{i}": {"enum": list(range(i))}}} for i in range(2, 30)]
    forms: tuple[Any, ...] = (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
        "additionalProperties": False},
        {"type": "boolean"}, deep, {"type": "object", "properties": wide},
        {"type": "object", "properties": wide, "required": list(wide), "additionalProperties": False},
        {"enum": [f"value {i}" for i in range(draw.choice((3, 500, 6000)))]},
        {"type": "array", "items": {"type": "array", "items": {"$ref": "#"}},
        "minItems": draw.choice((1, 50, 10**9))},
        {"type": "string", "minLength": draw.choice((3, 10**4, 10**9)), "maxLength": draw.choice((5, 10**9))},
        {"type": "string", "pattern": pattern(draw)}, {"$ref": "#"}, {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:9/x"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"allOf": [{"anyOf": many}, {"anyOf": many}, {"anyOf": many}]}, {"oneOf": many},
        {"not": {"type": "string"}},
        {"type": "frob"}, {"type": ["string", "null", 7]}, {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "integer", "minimum": -(10**draw.choice((3, 30, 300))), "maximum": 10**18},
        {"type": "number", "multipleOf": draw.choice((0, 1e-300, 0.1, -1))}, {"const": draw.choice(NASTY)},
        {"type": "string", "format": draw.choice(("date-time", "email", "uuid", "ipv6", "nonsense"))},
        {"type": "object", "patternProperties": {pattern(draw): {}}}, {"properties": 5}, {"required": "a"},
        True, False,
        {"type": "object", "minProperties": 10**6}, {"if": {}, "then": {"$ref": "#"}, "else": {}},
        draw.choice(NASTY),
        {"type": "array", "prefixItems": [{"type": "null"}] * draw.choice((2, 400)), "items": False},
        {"type": "array", "uniqueItems": True, "items": {"type": "integer"}},
    )  # fmt: skip
    return draw.choice(forms)


def pattern(draw: random.Random) -> str:
    """Return a regular expression of the same sorts."""
    number = draw.choice((3, 200, 30_000, 10**9))
    times, few = f"{{{number}}}", f"{{0,{number}}}"
    forms = (
        "[a-c]{3}", "(a|aa)+b", "(a*)*", f"((a{few}){few}){few}", f".{times}", f"(x|y){few}z",
        rf"\p{{L}}{times}", "(?=a)b", r"(a)\1", "(", ")", "[", "a{2,1}", "*",
        r"\x00+",
        "|".join(f"word{i}" for i in range(draw.choice((5, 3000)))), r"(?<n>a)(?P=n)", "[^\u0000-\uffff]", "",
        rf"(\d+\.){{{draw.randint(1, 40)}}}\d", "(" * 300 + ")" * 300, "(a?){60}a{60}", "^$", "(👩|é){4}",
        r"\q",
        "(.*)(.*)(.*)(.*)(.*)[^x]", "".join(draw.choices("ab.*+?()[]{}|\\^$1,", k=draw.randint(1, 60))),
    )  # fmt: skip
    return draw.choice(forms)


def lark(draw: random.Random) -> str:
    """Return a grammar of the same sorts."""
    forms = (
        'start: "yes" | "no"', "start: start", 'start: start start | "a"',
        f"start: A*\nA: /a{{1,{draw.choice((5, 10**6))}}}/",
        'start: x\nx: "(" x ")" | "x"', "start: nothing", "", "start", 'start: %import common.WORD',
        "start: /(/",
        'start: %json {"type": "object"}', "start: %json {bad", f'start: "a"~1..{draw.choice((5, 10**9))}',
        "\n".join(f'r{i}: r{i + 1} | "x"' for i in range(400)) + '\nr400: "y"\nstart: r0', 'START: "a"',
        "start: @x",
        "start: " + "(" * 400 + '"a"' + ")" * 400, "".join(draw.choices('start:|"/()*+~ \nABab1', k=80)),
    )  # fmt: skip
    return draw.choice(forms)


def form(draw: random.Random) -> Any:
    """Return a response_format."""
    forms: tuple[Any, ...] = (
        {"type": "json_object"}, {"type": "text"}, {"type": "xml"}, {"type": "regex"},
        {"type": "regex", "pattern": 7},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"schema": {}}},
    )  # fmt: skip
    roll = draw.random()
    if roll < 0.15:
        return draw.choice(forms)
    if roll < 0.6:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema(draw)}}
    if roll < 0.85:
        return {"type": "regex", "pattern": pattern(draw)}
    return {"type": "grammar", "syntax": "lark", "grammar": lark(draw)}


def tools(draw: random.Random) -> list[Any]:
    """Return tools, some of which cannot be."""
    names = ("weather", "a.b-c_d", "x" * 64, "x" * 65, "no spaces", "", "weather")
    return [
        {
            "type": "function",
            "function": {"name": draw.choice(names[: draw.choice((3, 7))]), "parameters": schema(draw)},
        }
        for _ in range(draw.choice((1, 1, 2, 5, 130)))
    ]
