"""`smollm3 batch`: a file of requests in OpenAI's batch format in, a file of answers out.

The path of the output goes to stdout; how far it is, and what came of it, to stderr. Exit code 1 says that
some requests have an error for an answer.
"""

import asyncio
import importlib.util
import sys
import time
from collections.abc import Generator
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3.cli.options import LoadOptions
from smollm3.errors import MissingDependencyError, ParameterError

if TYPE_CHECKING:
    from smollm3.server.batch import Batch, Outcome
    from smollm3.server.service import Service

MAX_CONCURRENCY = 1024
SERVER_PACKAGES = ("starlette", "pydantic")


def run_batch(
    source: Path,
    target: Path,
    options: LoadOptions,
    *,
    name: str | None,
    concurrency: int,
    retry_errors: bool,
    **engine_options: Any,
) -> int:
    """Answer the requests of `source` in `target` and return the exit code.

    `engine_options` are fields of ServiceOptions: threads, engine, kv_bits.
    """
    if not 1 <= concurrency <= MAX_CONCURRENCY:
        raise ParameterError(f"--concurrency {concurrency}: give 1 to {MAX_CONCURRENCY}")
    if missing := [package for package in SERVER_PACKAGES if importlib.util.find_spec(package) is None]:
        raise MissingDependencyError(
            f"smollm3 batch needs {', '.join(missing)}: pip install 'smollm3[serve]'"
        )
    from smollm3.server.batch import prepare

    batch = prepare(source, target, retry_errors=retry_errors)
    if batch.done:
        print(f"{len(batch.done)} of {batch.total} requests are answered already", file=sys.stderr)
    tally = Tally(batch.total, len(batch.done))
    if len(batch.done) < batch.total:
        service = _service(options, name, engine_options)
        try:
            tally.begin()
            asyncio.run(_run(service, batch, concurrency, tally))
        except KeyboardInterrupt:
            print(f"stopped, {tally.line()}: the same command goes on from here", file=sys.stderr)
            raise
        finally:
            tally.end()
    print(tally.line(), file=sys.stderr)
    print(target)
    return 1 if tally.num_failed else 0


class Tally:
    """Counts outcomes and draws the bar between `begin` and `end`."""

    def __init__(self, total: int, num_before: int) -> None:
        self.total, self.num_before = total, num_before
        self.num_done = self.num_failed = self.num_generated = 0
        self._began = time.perf_counter()
        self._bar: Generator[None] | None = None

    def begin(self) -> None:
        self._began = time.perf_counter()
        self._bar = _bar(self.total)
        for _ in range(self.num_before + 1):
            next(self._bar)

    def add(self, outcome: "Outcome") -> None:
        self.num_done += 1
        self.num_failed += not outcome.good
        self.num_generated += outcome.num_generated
        if self._bar is not None:
            next(self._bar)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def line(self) -> str:
        """Say what was done in this run."""
        if not self.num_done:
            return f"{self.num_before} of {self.total} requests answered"
        rate = self.num_generated / max(time.perf_counter() - self._began, 1e-9)
        return (
            f"{self.num_before + self.num_done} of {self.total} requests answered, "
            f"{self.num_failed} with an error; {self.num_generated} tokens, {rate:.1f} tokens/s"
        )


def _bar(total: int) -> Generator[None]:
    """A bar that advances by one with each `next` after the first."""
    from smollm3.checkpoint.progress import progress

    yield from progress(repeat(None), total, "requests")


def _service(options: LoadOptions, name: str | None, engine_options: dict[str, Any]) -> "Service":
    from smollm3.cli.loading import load
    from smollm3.server.build import ServiceOptions, build_service

    loaded = load(options)
    # A request may hold several prompts, so the window alone bounds what is in work.
    service_options = ServiceOptions(max_requests=sys.maxsize, **engine_options)
    return build_service(loaded.model, loaded.tokenizer, name or loaded.name, service_options)


async def _run(service: "Service", batch: "Batch", concurrency: int, tally: Tally) -> None:
    from smollm3.server.batch import run

    async with service:
        await run(service, batch, concurrency=concurrency, on_outcome=tally.add)
