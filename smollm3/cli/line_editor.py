"""What a person types: lines with editing and history, joined to messages of several lines.

In: a way to read one line. Out: whole messages. The history is kept by this module (one JSON string per line,
mode 0600, under XDG_STATE_HOME), because readline's own file cannot hold an entry of several lines.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

from smollm3.errors import PromptError

MAX_HISTORY = 1000
PROMPT, MORE = "> ", ". "
_FENCE = '"""'


def history_path() -> Path:
    """Return the chat's history file in the user's state folder."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return folder / "smollm3" / "chat_history"


class History:
    """The messages typed so far, on disk. A disk that fails costs the history, never the chat."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = self._read()

    def _read(self) -> list[str]:
        entries = []
        with contextlib.suppress(OSError):
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    if isinstance(entry, str):
                        entries.append(entry)
        if len(entries) > 2 * MAX_HISTORY:
            self._write(entries[-MAX_HISTORY:], os.O_TRUNC)
        return entries[-MAX_HISTORY:]

    def add(self, entry: str) -> None:
        """Append an entry unless it repeats the last one."""
        if entry.strip() and entry not in self.entries[-1:]:
            self.entries.append(entry)
            self._write([entry], os.O_APPEND)

    def _write(self, entries: Iterable[str], how: int) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | how, 0o600)
            self.path.chmod(0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)


def read_message(read_line: Callable[[str], str]) -> str | None:
    """Read one message, of several lines where the input says so; None at the end of the input.

    A line that ends in one backslash goes on in the next; three quotes open a block that three quotes close.
    Whatever was typed before the input ended is a message still.
    """
    lines: list[str] = []
    fenced = False
    while True:
        try:
            line = read_line(MORE if lines or fenced else PROMPT)
        except EOFError:
            return "\n".join(lines) if lines else None
        if not lines and not fenced and line.lstrip().startswith(_FENCE):
            fenced, line = True, line.lstrip().removeprefix(_FENCE)
            if not line.strip():
                continue
        if fenced:
            if line.rstrip().endswith(_FENCE):
                return "\n".join([*lines, line.rstrip().removesuffix(_FENCE)]).rstrip("\n")
            lines.append(line)
        elif line.endswith("\\") and not line.endswith("\\\\"):
            lines.append(line[:-1])
        else:
            return "\n".join([*lines, line])


class LineEditor:
    """Reads messages from the terminal with readline where Python has it."""

    def __init__(self, history: History, words: Sequence[str] = ()) -> None:
        self._history = history
        self._words = words
        self._readline = _set_up_readline(self._complete)
        self._fill()

    def read(self) -> str | None:
        """Read one message; None at the end of the input, KeyboardInterrupt on Ctrl-C."""
        message = read_message(_input)
        if message is not None:
            self.remember(message)
        return message

    def remember(self, message: str) -> None:
        """Add a message to the history on disk and on the arrow keys."""
        self._history.add(message)
        self._fill()

    def _fill(self) -> None:
        if self._readline:
            self._readline.clear_history()
            for entry in self._history.entries:
                self._readline.add_history(entry)

    def _complete(self, text: str, state: int) -> str | None:
        assert self._readline
        words = self._words if self._readline.get_begidx() == 0 else [w for w in self._words if w[:1] != "/"]
        matching = [word for word in words if word.startswith(text)]
        return matching[state] + " " if state < len(matching) else None


def _input(prompt: str) -> str:
    try:
        return input(prompt)
    except UnicodeDecodeError as error:
        raise PromptError(f"what you typed is not {error.encoding}: check the terminal's encoding") from None


def _set_up_readline(complete: Callable[[str, int], str | None]) -> ModuleType | None:
    try:
        import readline
    except ImportError:  # a Python without readline: plain lines
        return None
    readline.set_auto_history(False)
    readline.set_completer(complete)
    readline.set_completer_delims(" \n")
    for binding in ("tab: complete", '"\\e\\C-m": "\\C-v\\C-j"', '"\\e\\C-j": "\\C-v\\C-j"'):
        readline.parse_and_bind(binding)
    return readline
