"""An offline batch: a file of requests in, a file of answers out, by the server's own endpoints without HTTP.

Many requests run together and each answer is written when it is complete, so a run that ends early can be
taken up again. Whatever the files' sizes, only the requests in work are in memory.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from smollm3.errors import ParameterError
from smollm3.server import chat, completions, embeddings, responses
from smollm3.server.batch_files import BatchLine, line_error, read_lines, record, resume, scan
from smollm3.server.context import Context
from smollm3.server.errors import UnavailableError, reply_to
from smollm3.server.service import Service

log = logging.getLogger(__name__)

Create = Callable[[Context, dict[str, Any]], Awaitable[dict[str, Any]]]
ENDPOINTS: Mapping[str, Create] = {
    "/v1/chat/completions": chat.create,
    "/v1/completions": completions.create,
    "/v1/embeddings": embeddings.create,
    "/v1/responses": responses.create,
}
URLS = frozenset(ENDPOINTS)


@dataclass(frozen=True)
class Batch:
    """A batch that is ready to run: `done` of its `total` requests have their answer already."""

    source: Path
    target: Path
    total: int
    done: frozenset[bytes]

    def lines(self) -> Iterator[BatchLine]:
        """Yield the requests that are left."""
        return (line for line in read_lines(self.source, URLS) if line.key not in self.done)


@dataclass(frozen=True)
class Outcome:
    """What came of one request: whether it was answered, and the tokens that were generated for it."""

    good: bool
    num_generated: int


def prepare(source: Path, target: Path, *, retry_errors: bool = False) -> Batch:
    """Check both files and find out what is left to do. Raises ParameterError."""
    if source.exists() and target.exists() and source.samefile(target):
        raise ParameterError(f"{target} is the input: give another file for the output")
    asked = scan(source, URLS)
    done = resume(target, asked, retry_errors=retry_errors)
    return Batch(source, target, len(asked), frozenset(done))


async def run(
    service: Service, batch: Batch, *, concurrency: int, on_outcome: Callable[[Outcome], None]
) -> None:
    """Run what is left, `concurrency` requests at a time; `service` must be running.

    Cancelling it leaves a file of whole lines. Raises UnavailableError when the engine has failed.
    """
    lines = batch.lines()
    with batch.target.open("ab") as out:
        workers = [
            asyncio.create_task(_work_off(service, lines, out, on_outcome)) for _ in range(concurrency)
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _work_off(
    service: Service, lines: Iterator[BatchLine], out: BinaryIO, on_outcome: Callable[[Outcome], None]
) -> None:
    for line in lines:
        text, outcome = await _answer(service, line)
        out.write(text)
        out.flush()
        on_outcome(outcome)


async def _answer(service: Service, line: BatchLine) -> tuple[bytes, Outcome]:
    record_id, request_id = f"batch_req_{uuid4().hex}", f"req-{uuid4().hex}"
    if line.error is not None:
        return record(line, record_id, error=line_error(line)), Outcome(False, 0)
    status, num_generated = 200, 0
    try:
        body = await ENDPOINTS[line.url](Context(service, request_id), line.body)
        num_generated = _num_generated(body)
    except UnavailableError:
        raise
    except Exception as error:
        reply = reply_to(error)
        if reply.status >= 500:
            log.error("line %d failed", line.number, exc_info=error)
        status, body = reply.status, reply.body
    response = {"status_code": status, "request_id": request_id, "body": body}
    return record(line, record_id, response=response), Outcome(status == 200, num_generated)


def _num_generated(body: Mapping[str, Any]) -> int:
    usage = body.get("usage") or {}
    return int(usage.get("completion_tokens") or usage.get("output_tokens") or 0)
