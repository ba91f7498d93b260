"""The terminal side of the output: harmless text, and a region of lines that can be redrawn.

In: text from a model or a file, lines rendered for the terminal's width. Out: the same text with its control
characters spelled out, and as few bytes as show the new lines. Knows nothing of models and markdown.
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from typing import TextIO

# C0 and C1 controls but tab and newline, Unicode's line separators, bidirectional overrides, lone surrogates.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ERASE_BELOW = "\x1b[J"
_BEGIN_UPDATE, _END_UPDATE = "\x1b[?2026h", "\x1b[?2026l"


def escape_controls(text: str) -> str:
    """Spell control characters out (`\\x1b`), so that a terminal shows them instead of obeying them."""
    return _CONTROL.sub(_spelled, text.replace("\r\n", "\n"))


def _spelled(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def one_line(text: str) -> str:
    """Return `text` as one harmless line, for messages."""
    return escape_controls(" ".join(text.split()))


def without_styles(line: str) -> str:
    """Return a rendered line without its colour and style codes."""
    return _ANSI.sub("", line)


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody looks at `stream`; a closed or replaced one counts as no terminal."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def can_redraw(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that moves its cursor where it is told to."""
    return is_terminal(stream) and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def terminal_size() -> tuple[int, int]:
    """Return (columns, rows), at least (20, 4)."""
    columns, rows = shutil.get_terminal_size()
    return max(columns, 20), max(rows, 4)


class LiveRegion:
    """The last lines on the terminal: `show` redraws them, `commit` lets them scroll away for good.

    At most rows - 1 lines are live, so nothing that may still change ever reaches the scrollback: of a longer
    region only the end is on the screen, and `commit` prints it whole.
    """

    def __init__(
        self,
        stream: TextIO,
        size: Callable[[], tuple[int, int]] = terminal_size,
        width_of: Callable[[str], int] = len,
    ) -> None:
        self._stream = stream
        self._size = size
        self._width_of = width_of
        self._shown: list[str] = []

    def show(self, lines: Sequence[str]) -> None:
        """Make `lines` (rendered, no newlines) what is live on the terminal."""
        rows = self._size()[1]
        self._replace(list(lines)[-(rows - 1) :])

    def commit(self, lines: Sequence[str]) -> None:
        """Print `lines` in place of the live ones; the next `show` starts below them."""
        self._replace(list(lines))
        if self._shown:
            self._stream.write("\n")
            self._stream.flush()
        self._shown = []

    def _replace(self, lines: list[str]) -> None:
        same = 0
        while same < min(len(lines), len(self._shown)) and lines[same] == self._shown[same]:
            same += 1
        if same == len(lines) == len(self._shown):
            return
        if same == len(lines):
            same = max(
                0, same - 1
            )  # the cursor rests at the end of the last line, so that one is written again
        self._stream.write(_BEGIN_UPDATE + self._rewind(same) + "\n".join(lines[same:]) + _END_UPDATE)
        self._stream.flush()
        self._shown = lines

    def _rewind(self, same: int) -> str:
        """Return the codes that bring the cursor to where line `same` begins and clear what follows."""
        if not self._shown:
            return ""
        if same == len(self._shown):
            return "\n"
        columns = self._size()[0]
        heights = [max(1, -(-self._width_of(without_styles(line)) // columns)) for line in self._shown[same:]]
        up = sum(heights) - 1
        return "\r" + (f"\x1b[{up}A" if up else "") + _ERASE_BELOW
