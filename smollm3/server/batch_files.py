"""The two files of an offline batch: a request per line in, an answer per line out, OpenAI's format.

Both are read line by line, whatever their size; of each line only a short digest of its `custom_id` stays in
memory. What is wrong with one line is that line's answer; twin ids are refused before anything runs.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from smollm3.errors import ParameterError
from smollm3.server.body import parse_json
from smollm3.server.errors import RequestError

MAX_LINE = 16 * 2**20  # bytes; a longer line is refused without being read whole
FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class BatchLine:
    """One line of the input, from 1; a line that cannot be run has an `error` instead of a request."""

    number: int
    custom_id: str | None = None
    url: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    error: RequestError | None = None

    @property
    def key(self) -> bytes:
        """What names the line in both files: its custom_id, or its number where it has none."""
        return _key(self.custom_id, self.number)


def read_lines(path: Path, urls: frozenset[str]) -> Iterator[BatchLine]:
    """Yield the requests of a file; empty lines are none. `urls` are those that can be asked."""
    with _open(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                _skip_line(file, raw)
                yield BatchLine(number, error=_error(f"the line is over {MAX_LINE} bytes", "line_too_long"))
            elif raw.strip():
                yield _line(number, raw, urls)


def scan(path: Path, urls: frozenset[str]) -> set[bytes]:
    """Return the keys of all requests. Raises ParameterError for an id that two lines have."""
    keys: set[bytes] = set()
    for line in read_lines(path, urls):
        if line.key in keys:
            first = next(other.number for other in read_lines(path, urls) if other.key == line.key)
            raise ParameterError(
                f"{path}: lines {first} and {line.number} both have the custom_id {line.custom_id!r}: "
                "give each request its own"
            )
        keys.add(line.key)
    if not keys:
        raise ParameterError(f"{path} has no requests: give a file with a JSON object per line")
    return keys


def _line(number: int, raw: bytes, urls: frozenset[str]) -> BatchLine:
    custom_id: str | None = None
    try:
        entry = parse_json(raw)
        given = entry.get("custom_id")
        if not isinstance(given, str) or not given:
            raise _error("custom_id: give each request one, a text that is not empty", "invalid_custom_id")
        custom_id = given
        if unknown := [name for name in entry if name not in FIELDS]:
            raise _error(f"{unknown[0]}: not a field of a batch's line ({', '.join(FIELDS)})", "invalid_line")
        if entry.get("method") != "POST":
            raise _error(f"method is {entry.get('method')!r}: give POST", "invalid_method")
        url = entry.get("url")
        if not isinstance(url, str) or url not in urls:
            raise _error(f"url is {url!r}: give one of {', '.join(sorted(urls))}", "invalid_url")
        if not isinstance(entry.get("body"), dict):
            raise _error("body: give the request as an object", "invalid_body")
    except RequestError as error:
        error.code = error.code or "invalid_json_line"
        return BatchLine(number, custom_id, error=error)
    return BatchLine(number, custom_id, url, entry["body"])


def _error(message: str, code: str) -> RequestError:
    return RequestError(message, code=code)


def _key(custom_id: str | None, number: int) -> bytes:
    name = f"line {number}" if custom_id is None else f"id {custom_id}"
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error.strerror}") from None


def _skip_line(file: BinaryIO, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(MAX_LINE)


# The output


def record(line: BatchLine, record_id: str, **parts: Any) -> bytes:
    """Return a line of the output: `response` or `error`, the other null."""
    entry = {"id": record_id, "custom_id": line.custom_id, "response": None, "error": None, **parts}
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def line_error(line: BatchLine) -> dict[str, Any]:
    """Return what the output says about a line that could not be run."""
    assert line.error is not None
    return {"code": line.error.code, "message": str(line.error), "line": line.number}


def resume(path: Path, asked: set[bytes], *, retry_errors: bool) -> set[bytes]:
    """Make the output ready to be added to and return the keys that it has answers for already.

    A last line that was cut off is dropped, and with `retry_errors` so are failures. Raises ParameterError
    for a file that is not such an output, or that answers what was not asked.
    """
    if not path.parent.is_dir():
        raise ParameterError(f"{path.parent} is no folder: make it or give another output")
    if not path.exists():
        path.touch()
        return set()
    done: set[bytes] = set()
    kept_bytes, failures = 0, 0
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                break
            kept_bytes += len(raw)
            key, failed = _answered(path, number, raw)
            if key not in asked:
                raise ParameterError(
                    f"{path}: line {number} answers a request that is not in the input: give another output"
                )
            failures += failed
            if not (failed and retry_errors):
                done.add(key)
    os.truncate(path, kept_bytes)
    if retry_errors and failures:
        _drop_failures(path)
    return done


def _answered(path: Path, number: int, raw: bytes) -> tuple[bytes, bool]:
    """Return the key of a line of the output, and whether it tells of a failure."""
    try:
        entry = json.loads(raw)
        response, error = entry["response"], entry["error"]
        custom_id = entry["custom_id"]
        place = error["line"] if custom_id is None else 0
        failed = error is not None or response["status_code"] != 200
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ParameterError(f"{path}: line {number} is no answer of a batch: give another output") from None
    return _key(custom_id, place), failed


def _drop_failures(path: Path) -> None:
    """Write the file anew without its failures; it is replaced when the new one is whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as kept, path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not _answered(path, number, raw)[1]:
                    kept.write(raw)
        Path(name).chmod(path.stat().st_mode & 0o777)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
