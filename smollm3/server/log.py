"""The server's log: one line per record on stderr, as JSON or as text, in which nothing can end the line.

Control characters (CR, LF, ANSI escapes) and whatever is not ASCII are escaped, wherever they come from.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["json", "text"]
FIELDS = "smollm3_fields"  # the record's attribute with further fields
LOGGERS = ("smollm3", "uvicorn.error", "asyncio")


def setup_logging(form: LogFormat = "json", stream: TextIO | None = None) -> logging.Handler:
    """Send the server's records to `stream` (stderr); return the handler."""
    handler = logging.StreamHandler(stream or sys.stderr)
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
