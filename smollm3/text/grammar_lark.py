"""The source of a Lark grammar from a stranger in; refused, with its line, if too large or not supported.

JSON schemas in it (`%json {...}`) are checked like any other; whether the rules are right, the compiler says.
"""

import json
import re

from smollm3.errors import ParameterError
from smollm3.text.grammar_patterns import MAX_PATTERN_DEPTH, check_pattern
from smollm3.text.grammar_schema import ready_schema

MAX_LARK_CHARS = 50_000
_COMMENT_OR_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|(?://|#)[^\n]*')
_DIRECTIVE = re.compile(r"%(\w+)")
_KNOWN_DIRECTIVES = {"json", "ignore", "import", "regex", "lark"}
# Options of a rule that change how an id is chosen, or take ids back.
_OPTION = re.compile(r"\b(stop|temperature|max_tokens)\s*=")
_COUNT = re.compile(r"(?:\{|~)\s*(\d*)\s*(?:,|\.\.)?\s*(\d*)")
MAX_REPETITIONS = 10_000


def check_lark(source: object) -> None:
    """Raise a ParameterError for a source that cannot be used; it begins with `grammar`."""
    if not isinstance(source, str) or not source.strip():
        raise ParameterError("grammar: give the source of a Lark grammar as text")
    if len(source) > MAX_LARK_CHARS:
        raise ParameterError(f"grammar: {len(source)} characters are over {MAX_LARK_CHARS}: shorten it")
    try:
        source.encode("utf-8")
    except UnicodeEncodeError:
        raise ParameterError("grammar: the source has a lone surrogate: remove it") from None
    rules = _without_json(source)
    for literal in _COMMENT_OR_LITERAL.finditer(rules):
        if literal.group().startswith("/") and not literal.group().startswith("//"):
            check_pattern(literal.group()[1:-1], _where(rules, literal.start()))
    _check_rules(_COMMENT_OR_LITERAL.sub(lambda match: " " * len(match.group()), rules))


def _without_json(source: str) -> str:
    """The source with each `%json {...}` checked and blanked; line breaks stay."""
    decoder = json.JSONDecoder()
    position = 0
    while (start := source.find("%json", position)) >= 0:
        where = _where(source, start)
        begin = start + len("%json")
        begin += len(source[begin:]) - len(source[begin:].lstrip())
        try:
            schema, end = decoder.raw_decode(source, begin)
        except (ValueError, RecursionError):
            raise ParameterError(f"{where}: no JSON schema follows %json") from None
        ready_schema(schema, f"{where}: %json", {})
        blank = re.sub(r"[^\n]", " ", source[begin:end])
        source = source[:begin] + blank + source[end:]
        position = end
    return source


def _check_rules(rules: str) -> None:
    for match in _DIRECTIVE.finditer(rules):
        if match.group(1) not in _KNOWN_DIRECTIVES:
            raise ParameterError(
                f"{_where(rules, match.start())}: %{match.group(1)} is not supported: leave it out"
            )
    for match in _OPTION.finditer(rules):
        raise ParameterError(
            f"{_where(rules, match.start())}: the option {match.group(1)} is not supported: use suffix, lazy"
        )
    for match in _COUNT.finditer(rules):
        if any(len(number) > 9 or int(number) > MAX_REPETITIONS for number in match.groups() if number):
            raise ParameterError(
                f"{_where(rules, match.start())}: a repetition is over {MAX_REPETITIONS}: lower it"
            )
    depth = 0
    for position, char in enumerate(rules):
        depth += (char in "([{") - (char in ")]}")
        if depth > MAX_PATTERN_DEPTH:
            raise ParameterError(
                f"{_where(rules, position)}: groups nest over {MAX_PATTERN_DEPTH} deep: name parts of them"
            )


def _where(source: str, position: int) -> str:
    return f"grammar, line {source.count(chr(10), 0, position) + 1}"
