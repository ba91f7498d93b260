"""The body of a request as a JSON object: what is not one, or can be read in two ways, is refused by name.

Refused: other content types, invalid UTF-8, twin keys, NaN and infinities, lone surrogates, endless nesting.
"""

import json
import math
import re
from typing import Any

from starlette.requests import Request

from smollm3.server.errors import RequestError

MAX_DEPTH = 64  # of arrays and objects; a JSON schema of a tool is rarely deeper than ten
# A string to its end, even if that is missing, or a bracket: linear in any text.
_TOKENS = re.compile(r'"(?:[^"\\]+|\\.)*+"?|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


async def read_json(request: Request) -> dict[str, Any]:
    """Return the body as a JSON object; raises RequestError (400, 415)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(f"Content-Type is {kind or 'missing'}: send application/json", status=415)
    return parse_json(await request.body())


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object; raises RequestError."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 (byte {error.start})") from None
    _check_depth(text)
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError("the body is JSON, but not an object: send {...}")
    _check_text(value)
    return value


def _check_depth(text: str) -> None:
    """Refuse nesting before it is parsed; brackets inside strings do not count."""
    depth = 0
    for match in _TOKENS.finditer(text):
        char = match.group()[0]
        if char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise RequestError(
                    f"the body is nested deeper than {MAX_DEPTH} levels at character {match.start()}"
                )
        elif char in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RequestError(f"the body has the key {key!r} twice in one object", param=key)
            seen.add(key)
    return value


def _refuse_constant(name: str) -> Any:
    raise RequestError(f"the body has {name}, which is no JSON: send a finite number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise RequestError(f"the body has the number {digits[:40]}, which is too large")
    return number


def _check_text(value: Any) -> None:
    """Refuse lone surrogates, which are no text."""
    if isinstance(value, str):
        if not value.isascii() and _SURROGATE.search(value):
            raise RequestError("the body has a lone surrogate in a string: send whole characters")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key)
            _check_text(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner)
