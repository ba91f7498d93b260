"""The date a template prints: an argument goes in, the same English text comes out under every locale."""

import re
from datetime import date, datetime

from smollm3.errors import PromptError
from smollm3.text.meter import TemplateLimitError

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_MAX_FORMAT = 200


def moment(when: date | str | None) -> datetime:
    """Turn `when` (a date, a datetime, ISO text such as "2026-11-23", or None for now) into a datetime."""
    if when is None:
        return datetime.now()
    if isinstance(when, datetime):
        return when
    if isinstance(when, date):
        return datetime(when.year, when.month, when.day)
    try:
        return datetime.fromisoformat(when)
    except (TypeError, ValueError):
        raise PromptError(
            f"date={when!r} is not a date: pass a datetime.date or text like '2026-11-23'"
        ) from None


def strftime(when: datetime, pattern: str) -> str:
    """Format as `datetime.strftime` does in the C locale, whatever locale the process runs under."""
    if not isinstance(pattern, str) or len(pattern) > _MAX_FORMAT or re.search(r"%[-_0^#]?[1-9]", pattern):
        raise TemplateLimitError(
            "strftime_now takes a plain format of at most 200 characters, without widths"
        )
    named = {
        "A": _DAYS[when.weekday()],
        "a": _DAYS[when.weekday()][:3],
        "B": _MONTHS[when.month - 1],
        "b": _MONTHS[when.month - 1][:3],
        "h": _MONTHS[when.month - 1][:3],
        "p": "AM" if when.hour < 12 else "PM",
        "c": f"{_DAYS[when.weekday()][:3]} {_MONTHS[when.month - 1][:3]} {when.day:2d} {when:%H:%M:%S %Y}",
        "x": f"{when:%m/%d/%y}",
        "X": f"{when:%H:%M:%S}",
    }
    return re.sub(r"%([-_0^#]?)(.)", lambda match: _directive(when, named, match), pattern, flags=re.DOTALL)


def _directive(when: datetime, named: dict[str, str], match: re.Match[str]) -> str:
    flag, letter = match.groups()
    if letter in named:
        return named[letter].upper() if flag == "^" else named[letter]
    return when.strftime(match.group())
