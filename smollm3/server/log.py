"""The server's log: one line per record on stderr, as JSON or as text, in which nothing can end the line.

Control characters (CR, LF, ANSI escapes) and whatever is not ASCII are escaped, wherever they come from. A
thread of its own writes, so that a reader who stands still holds up nothing but the log.
"""

import contextlib
import json
import logging
import os
import select
import sys
import threading
from collections import deque
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["json", "text"]
FIELDS = "smollm3_fields"  # the record's attribute with further fields
QUEUE_CHARACTERS = 4_000_000  # what may wait to be written
FLUSH_SECONDS = 1.0
LOGGERS = ("smollm3", "uvicorn.error", "asyncio")


def setup_logging(form: LogFormat = "json", stream: TextIO | None = None) -> "LineHandler":
    """Send the server's records to `stream` (stderr); return the handler, which is flushed at exit."""
    handler = LineHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(form))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        # What uvicorn says of itself, and of each bad request, is said by us.
        logger.setLevel(logging.INFO if name == "smollm3" else logging.ERROR)
    return handler


def note(logger: logging.Logger, message: str, **fields: Any) -> None:
    """Log a message with fields; those that are None are left out."""
    logger.info(message, extra={FIELDS: {name: value for name, value in fields.items() if value is not None}})


class LineHandler(logging.Handler):
    """Writes records in a thread; what comes while `max_characters` wait is left out, and told later."""

    def __init__(self, stream: TextIO, max_characters: int = QUEUE_CHARACTERS) -> None:
        super().__init__()
        self._stream = stream
        self._max_characters = max_characters
        self._lines: deque[str] = deque()
        self._num_waiting = 0  # characters, with those being written
        self._num_lost = 0  # records
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="smollm3-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line; never waits for whoever reads the log."""
        line = self.format(record) + "\n"
        with self._changed:
            if self._closed:
                return
            if self._num_waiting and self._num_waiting + len(line) > self._max_characters:
                self._num_lost += 1
                return
            self._lines.append(line)
            self._num_waiting += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, for FLUSH_SECONDS at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_waiting and not self._num_lost, FLUSH_SECONDS)

    def close(self) -> None:
        """Take no more; what is queued is still written, while the process lives."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        super().close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._num_lost or self._closed)
                if not (self._lines or self._num_lost):
                    return
                text = "".join(self._lines) + self._told_lost()
                self._num_waiting += len(text) - sum(map(len, self._lines))
                self._lines.clear()
                self._num_lost = 0
            _write(self._stream, text)
            with self._changed:
                self._num_waiting -= len(text)
                self._changed.notify_all()

    def _told_lost(self) -> str:
        if not self._num_lost:
            return ""
        told = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "log records lost", (), None)
        setattr(told, FIELDS, {"records": self._num_lost})
        return self.format(told) + "\n"


def _write(stream: TextIO, text: str) -> None:
    """Write as fast as the reader takes it; a reader that is gone gets nothing."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # no file
        stream.write(text)
        return
    # Past sys.stderr: a thread that stands still must not hold the lock that Python takes at exit.
    rest = memoryview(text.encode("ascii"))
    with contextlib.suppress(OSError):
        while rest:
            try:
                rest = rest[os.write(number, rest) :]
            except BlockingIOError:
                select.select([], [number], [])


class LineFormatter(logging.Formatter):
    """Writes a record as one line of ASCII."""

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = self.formatException(record.exc_info)
        if self._form == "json":
            return json.dumps(line, default=str)
        head = f"{line.pop('time')} {line.pop('level')}: {_plain(line.pop('message'))}"
        return " ".join([head, *(f"{name}={_value(value)}" for name, value in line.items())])


def _plain(text: str) -> str:
    """Escape what is not printable ASCII."""
    return json.dumps(text)[1:-1].replace('\\"', '"').replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return (
        json.dumps(text).replace("\x7f", "\\u007f")
        if isinstance(value, str) and " " in text
        else _plain(text)
    )
