"""A terminal for the tests: what is written to it can be read back as a person would see it."""

import io

import pyte


class Terminal(io.StringIO):
    """A text stream onto an emulated screen of `columns` x `rows` with scrollback."""

    def __init__(self, columns: int = 60, rows: int = 12) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows
        self.raw = ""
        self._screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=1.0)
        self._screen.set_mode(pyte.modes.LNM)  # a pty's line discipline turns \n into \r\n
        self._stream = pyte.Stream(self._screen)

    def write(self, text: str) -> int:
        self.raw += text
        self._stream.feed(text)
        return len(text)

    def isatty(self) -> bool:
        return True

    def size(self) -> tuple[int, int]:
        return self.columns, self.rows

    @property
    def display(self) -> list[str]:
        """The rows on the screen now."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def lines(self) -> list[str]:
        """Scrollback and screen, without the empty rows below."""
        past = [
            "".join(row[x].data for x in range(self.columns)).rstrip() for row in self._screen.history.top
        ]
        lines = past + self.display
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def cursor(self) -> tuple[int, int]:
        """(column, row) of the cursor."""
        return self._screen.cursor.x, self._screen.cursor.y
