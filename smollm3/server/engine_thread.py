"""The thread in which the engine runs: jobs and cancellations in by a queue, each step's updates out.

Knows neither text nor asyncio. Nothing here is called by two threads at once but the queue itself.
"""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread
from typing import TypeVar

from smollm3.engine.engine import Engine, Request
from smollm3.engine.sample import TokenOutput

Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way through the engine; the thread alone touches `request_idx` and `running`."""

    request: Request
    request_idx: int = -1
    running: set[int] = field(default_factory=set)  # sample_idx


# What a step did to one sample of a job (several ids, where some were guessed right), or why it never began.
Update = tuple[Job, Sequence[TokenOutput] | Exception]


class EngineThread:
    """Runs an engine until `stop`; `deliver` gets each step's updates, in the engine's thread.

    `died` is called when a step raises: the engine's state is unknown then, and nothing runs any more.
    """

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[Sequence[Update]], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._died = died
        self._jobs: dict[int, Job] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = Thread(target=self._run, name="smollm3-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def add(self, job: Job) -> None:
        """Queue a job; if the engine refuses it, its one update is the error."""
        self._inbox.put(lambda: self._add(job))

    def abort(self, job: Job, sample_idx: int | None = None) -> None:
        """Drop a job, or one of its samples, before the next step."""
        self._inbox.put(lambda: self._abort(job, sample_idx))

    def call(self, function: Callable[[], Result]) -> "Future[Result]":
        """Run a function between two steps; give its result, or what it raised."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._inbox.put(run)
        return future

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread after the step that runs, and what runs with it; whether it ended in time."""
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._take():
                if self._engine.has_work:
                    self._step()
            self._engine.close()
        except BaseException as error:
            self._died(error)

    def _take(self) -> bool:
        """Do what lies in the inbox, and wait for something if there is no other work; False ends."""
        block = not self._engine.has_work
        while True:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            block = False

    def _add(self, job: Job) -> None:
        try:
            job.request_idx = self._engine.add(job.request)
        except Exception as error:
            self._deliver([(job, error)])
            return
        job.running.update(range(job.request.num_samples))
        self._jobs[job.request_idx] = job

    def _abort(self, job: Job, sample_idx: int | None) -> None:
        if self._jobs.get(job.request_idx) is not job or (
            sample_idx is not None and sample_idx not in job.running
        ):
            return
        self._engine.abort(job.request_idx, sample_idx)
        self._end(job, sample_idx)

    def _end(self, job: Job, sample_idx: int | None) -> None:
        job.running.discard(sample_idx) if sample_idx is not None else job.running.clear()
        if not job.running:
            del self._jobs[job.request_idx]

    def _step(self) -> None:
        outputs: dict[tuple[int, int], list[TokenOutput]] = {}
        for output in self._engine.step():
            outputs.setdefault((output.request_idx, output.sample_idx), []).append(output)
        updates: list[Update] = []
        for (request_idx, sample_idx), of_sample in outputs.items():
            job = self._jobs[request_idx]
            updates.append((job, of_sample))
            if of_sample[-1].finish_reason is not None or of_sample[-1].error is not None:
                self._end(job, sample_idx)
        if updates:
            self._deliver(updates)
