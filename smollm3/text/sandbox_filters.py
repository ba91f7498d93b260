"""Jinja's filters, operators and methods, each refused before it makes a value too large to allow.

The table at the end is an allow-list: what is not in it (`urlize`, `wordwrap`, `random`, ...) has
unbounded cost or no use in a chat template, and a template that asks for it is refused when it compiles.
"""

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import wraps
from string import Formatter
from typing import Any, cast

from jinja2 import Environment
from jinja2.filters import FILTERS
from jinja2.sandbox import SandboxedFormatter

from smollm3.text.meter import CURRENT, TemplateLimitError

_MAX_INT_BITS = 65_536
_MAX_DIGITS = 4_000
_MAX_WIDTH = 10_000
_MAX_INDENT = 32
_NUMBER = re.compile(r"\d+")
_PERCENT = re.compile(r"%(?:\([^()]*\))?[^%a-zA-Z]*[a-zA-Z%]?")

# Filters whose result cannot outgrow what the general guard measures.
_PLAIN_FILTERS_TEXT = """
    abs attr capitalize count d default dictsort e escape first float groupby items last length list
    lower map max min reject rejectattr reverse safe select selectattr sort string title trim
    truncate unique upper urlencode wordcount
"""
_PLAIN_FILTERS = _PLAIN_FILTERS_TEXT.split()

_STRING_METHODS_TEXT = """
    capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii
    isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust
    lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit
    rstrip split splitlines startswith strip swapcase title upper zfill
"""
_STRING_METHODS = frozenset(_STRING_METHODS_TEXT.split())
_METHODS: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, _STRING_METHODS),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    ((list, tuple), frozenset({"copy", "count", "index"})),
    ((bool, int, float), frozenset({"bit_length", "is_integer"})),
)


def binary(op: str, left: Any, right: Any) -> Any:
    """Compute `left op right` if the result is allowed to exist."""
    meter = CURRENT.get()
    meter.tick()
    if isinstance(left, int) and isinstance(right, int):
        bits = {
            "**": left.bit_length() * max(right, 0) if abs(left) > 1 else 1,
            "*": left.bit_length() + right.bit_length(),
        }.get(op, 0)
        if bits > _MAX_INT_BITS:
            raise TemplateLimitError(f"a number would grow past {_MAX_INT_BITS} bits")
    elif op == "%" and isinstance(left, str):
        allow_percent(left, right)
    elif op == "*" and (isinstance(left, int) or isinstance(right, int)):
        sequence, times = (right, left) if isinstance(left, int) else (left, right)
        meter.allow(meter.size(sequence) * max(times, 0) if isinstance(times, int) else 0)
    elif op == "+":
        meter.allow(meter.size(left) + meter.size(right))
    return meter.admit(_OPERATORS[op](left, right))


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}


def allow_percent(pattern: str, values: Any) -> None:
    """Refuse a printf pattern whose result could be too large: widths, stars, the same value many times."""
    meter = CURRENT.get()
    directives = _PERCENT.findall(pattern)
    widths = [int(number[:9]) for text in directives for number in _NUMBER.findall(text.rpartition(")")[2])]
    if any("*" in text for text in directives) or max(widths, default=0) > _MAX_WIDTH:
        raise TemplateLimitError(f"a format asks for a width over {_MAX_WIDTH}, or for one from its values")
    meter.allow(len(pattern) + sum(widths) + len(directives) * meter.size(values))


class MeteredFormatter(SandboxedFormatter):
    """`str.format` inside the sandbox, with the widths and the sum of its fields limited."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._size = 0

    def format_field(self, value: Any, format_spec: str) -> str:
        meter = CURRENT.get()
        if any(len(number) > 4 for number in _NUMBER.findall(format_spec)):
            raise TemplateLimitError(f"a format asks for a width over {_MAX_WIDTH}")
        self._size += meter.size(value)
        meter.allow(self._size)
        text: str = Formatter.format_field(self, value, format_spec)
        self._size += len(text)
        meter.allow(self._size)
        return text


def allow_method(name: str, owner: Any, args: Sequence[Any]) -> None:
    """Refuse a method call on plain data that is not in the list or whose result or cost is too large."""
    if not any(isinstance(owner, types) and name in names for types, names in _METHODS):
        raise TemplateLimitError(f"the method {name!r} of {type(owner).__name__} is not offered to templates")
    if not isinstance(owner, str):
        return
    meter = CURRENT.get()
    first = args[0] if args else None
    if name in {"center", "ljust", "rjust", "zfill"} and isinstance(first, int):
        meter.allow(first)
    elif name == "expandtabs":
        meter.allow(len(owner) + owner.count("\t") * (first if isinstance(first, int) else 8))
    elif name == "replace" and len(args) >= 2 and isinstance(first, str) and isinstance(args[1], str):
        meter.allow(len(owner) + owner.count(first) * len(args[1]))
    elif name == "join" and isinstance(first, Sized):
        meter.allow(meter.size(first) + len(owner) * len(first))
    elif name in {"rfind", "rindex", "rsplit", "rpartition"} and isinstance(first, str):
        # Searching from the right has no linear worst case in CPython.
        meter.allow(len(owner) * len(first) // 64)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    columns = len(width) if isinstance(width, str) else int(width)
    CURRENT.get().allow(len(s) + (len(s.splitlines()) + 1) * max(columns, 0))
    return str(FILTERS["indent"](s, width, first, blank))


def _center(value: str, width: int = 80) -> str:
    CURRENT.get().allow(int(width))
    return str(FILTERS["center"](value, width))


def _replace(eval_ctx: Any, s: str, old: str, new: str, count: int | None = None) -> Any:
    CURRENT.get().allow(len(str(s)) + str(s).count(str(old)) * len(str(new)))
    return FILTERS["replace"](eval_ctx, s, old, new, count)


def _join(eval_ctx: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> Any:
    items = list(value)
    CURRENT.get().allow(CURRENT.get().size(items) + len(items) * len(str(d)))
    return FILTERS["join"](eval_ctx, items, d, attribute)


def _format(value: str, *args: Any, **kwargs: Any) -> Any:
    allow_percent(str(value), kwargs or args)
    return FILTERS["format"](value, *args, **kwargs)


def _tojson(
    eval_ctx: Any,
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates mean it: no HTML escapes, keys in their order."""
    columns = len(indent) if isinstance(indent, str) else int(indent or 0)
    if columns > _MAX_INDENT or any(len(separator) > _MAX_INDENT for separator in separators or ()):
        raise TemplateLimitError(f"tojson takes an indent and separators of at most {_MAX_INDENT} characters")
    weight = CURRENT.get().weigh(x)
    CURRENT.get().allow(weight.size + weight.nodes * (weight.depth * max(columns, 0) + 2))
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _round(value: float, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > 100:
        raise TemplateLimitError("round takes at most 100 digits")
    return FILTERS["round"](value, precision, method)


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        raise TemplateLimitError(f"int takes at most {_MAX_DIGITS} digits")
    return int(FILTERS["int"](value, default, base))


def _sum(
    environment: Any, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0
) -> Any:
    if not isinstance(start, int | float):
        raise TemplateLimitError("sum adds numbers only")
    return FILTERS["sum"](environment, iterable, attribute, start)


def _batch(value: Iterable[Any], linecount: int, fill_with: Any = None) -> list[Any]:
    CURRENT.get().allow(int(linecount))
    return list(FILTERS["batch"](value, linecount, fill_with))


def _slice(eval_ctx: Any, value: Iterable[Any], slices: int, fill_with: Any = None) -> list[Any]:
    CURRENT.get().allow(int(slices))
    return list(FILTERS["slice"](eval_ctx, value, slices, fill_with))


def _guarded(function: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter: count it, refuse many items times large arguments, measure its result."""
    skip = 1 if hasattr(like, "jinja_pass_arg") else 0

    @wraps(like)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter = CURRENT.get()
        meter.tick()
        value, *others = args[skip:] or (None,)
        if isinstance(value, Iterator):
            value = list(value)
            args = (*args[:skip], value, *others)
        if others or kwargs:
            num_items = len(value) if isinstance(value, list | tuple | dict) else 1
            meter.allow(num_items * meter.size([others, kwargs]) // 16)
        meter.allow(meter.size(value))
        result = function(*args, **kwargs)
        return meter.admit(list(result) if isinstance(result, Iterator) else result)

    return run


FILTERS_OFFERED: dict[str, Callable[..., Any]] = {
    **{name: _guarded(FILTERS[name], FILTERS[name]) for name in _PLAIN_FILTERS},
    **{
        name: _guarded(cast(Callable[..., Any], function), FILTERS[name])
        for name, function in {
            "batch": _batch, "center": _center, "format": _format, "indent": _indent, "int": _int,
            "join": _join, "replace": _replace, "round": _round, "slice": _slice, "sum": _sum,
            "tojson": _tojson,
        }.items()
    },
}  # fmt: skip
