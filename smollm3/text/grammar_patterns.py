"""A regular expression in; refused with a reason if it is too long, too deep or repeats too much.

The size is that of the pattern with its counted repetitions written out. Whether the syntax is right is the
business of the library that compiles it.
"""

import re

from smollm3.errors import ParameterError

MAX_PATTERN_CHARS = 5_000
MAX_PATTERN_DEPTH = 40
MAX_PATTERN_SIZE = 20_000
_COUNT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
"""Characters that answers in JSON do not have: only `\\u....` could write them, which has no one form."""
_CODE = r"(?:0[0-7BbEeFf]|1[0-9A-Fa-f]|7[Ff])"
_UNWRITABLE_ESCAPE = re.compile(rf"\\(?:[av0]|(?:x|u00|U000000){_CODE}|[xuU]\{{0*(?:[0-7BbEeFf]|{_CODE})\}})")


def check_pattern(pattern: object, where: str) -> str:
    """Return the pattern, or raise a ParameterError that begins with `where`."""
    if not isinstance(pattern, str):
        raise ParameterError(f"{where}: a pattern is text, not {type(pattern).__name__}")
    if any("\ud800" <= char <= "\udfff" for char in pattern):
        raise ParameterError(f"{where}: the pattern has a lone surrogate: remove it")
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ParameterError(
            f"{where}: a pattern of {len(pattern)} characters is over {MAX_PATTERN_CHARS}: shorten it"
        )
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise ParameterError(f"{where}: the pattern ends in a lone backslash: escape it as \\\\")
    size = _written_out_size(pattern, where)
    if size > MAX_PATTERN_SIZE:
        raise ParameterError(
            f"{where}: written out, the pattern's repetitions make {size} characters, over "
            f"{MAX_PATTERN_SIZE}: lower their bounds"
        )
    return pattern


def check_json_pattern(pattern: object, where: str) -> str:
    """As `check_pattern`, for text inside JSON: a character that cannot be written cannot be asked for."""
    text = check_pattern(pattern, where)
    position = 0
    while position < len(text):
        end = _class_end(text, position, where) if text[position] == "[" else position + 1
        part = text[position:end]
        end += part == "\\"
        found = _UNWRITABLE_ESCAPE.match(text, position) or UNWRITABLE.match(text, position)
        if part.startswith("[") and "-" not in part and not part.startswith("[^"):
            found = _UNWRITABLE_ESCAPE.search(part) or UNWRITABLE.search(part)
        if found:
            raise ParameterError(f"{where}: {found.group()!r} cannot be part of an answer: leave it out")
        position = end
    return text


def _written_out_size(pattern: str, where: str) -> int:
    """Characters to match once counted repetitions are multiplied; open groups count as closed at the end."""
    sizes = [0]  # of each open group
    last = 0  # of what a count would repeat
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "{" and (count := _COUNT.match(pattern, position)):
            bounds = [int(number[:9]) for number in count.groups() if number]
            sizes[-1] += last * (max(bounds, default=1) - 1)
            last *= max(bounds, default=1)
            position = count.end()
            continue
        if char == "(":
            sizes.append(0)
            if len(sizes) > MAX_PATTERN_DEPTH:
                raise ParameterError(
                    f"{where}: the pattern nests groups over {MAX_PATTERN_DEPTH} deep: flatten it"
                )
            position += 1
            continue
        if char == ")":
            last = sizes.pop() if len(sizes) > 1 else 1
        elif char not in "*+?":
            last = 1
        sizes[-1] += last if char not in "*+?" else 0
        position = _class_end(pattern, position, where) if char == "[" else position + 1 + (char == "\\")
    return sum(sizes)


def _class_end(pattern: str, start: int, where: str) -> int:
    """Where a character class ends; classes nest."""
    depth, position = 0, start
    while position < len(pattern):
        char = pattern[position]
        depth += (char == "[") - (char == "]")
        if depth > MAX_PATTERN_DEPTH:
            raise ParameterError(
                f"{where}: the pattern nests classes over {MAX_PATTERN_DEPTH} deep: flatten it"
            )
        position += 1 + (char == "\\")
        if depth == 0:
            break
    return position
