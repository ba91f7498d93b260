"""One request's texts on their way to vectors: token ids in, a vector of length 1 for each out, in order.

Lives in the event loop's thread. Only so many texts are in the engine at a time as keep its steps full, so
that whoever asks meanwhile has his turn soon. Knows no HTTP.
"""

import asyncio
from collections.abc import Callable, Sequence

from smollm3.engine.engine import Request
from smollm3.engine.sample import TokenOutput
from smollm3.server.engine_thread import Job
from smollm3.server.errors import GenerationError

IDS_AHEAD = 1024  # ids in the engine: two full steps
TEXTS_AHEAD = 64


class PooledTexts:
    """The texts of a request; `vectors` gets them all, or what went wrong with one of them.

    `start` hands a text's job to the engine, `stop` takes one back that has not ended.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        start: Callable[["PooledTexts", Job], None],
        stop: Callable[[Job], None],
    ) -> None:
        self._requests = requests
        self._start = start
        self._stop = stop
        self._places: dict[Job, int] = {}  # of texts in the engine
        self._num_ids = 0  # of them
        self._num_begun = 0
        self._done: dict[int, list[float]] = {}
        self.vectors: asyncio.Future[list[list[float]]] = asyncio.get_running_loop().create_future()

    def go_on(self) -> None:
        """Put further texts into the engine, as far as there is use for them."""
        while self._num_begun < len(self._requests) and (
            not self._places or (self._num_ids < IDS_AHEAD and len(self._places) < TEXTS_AHEAD)
        ):
            job = Job(self._requests[self._num_begun])
            self._places[job] = self._num_begun
            self._num_ids += len(job.request.prompt_ids)
            self._num_begun += 1
            self._start(self, job)

    def take(self, job: Job, output: TokenOutput) -> None:
        """Take in a text's vector."""
        place = self._places.pop(job, None)
        if place is None:  # given up meanwhile
            return
        self._num_ids -= len(job.request.prompt_ids)
        if output.vector is None:
            self.fail(GenerationError(str(output.error)))
            return
        vector = output.vector
        self._done[place] = (vector / vector.norm().clamp_min(1e-12)).float().tolist()
        self.go_on()
        if len(self._done) == len(self._requests) and not self.vectors.done():
            self.vectors.set_result([self._done[idx] for idx in range(len(self._requests))])

    def fail(self, error: Exception) -> None:
        """Give all texts up for what happened to one."""
        if not self.vectors.done():
            self.vectors.set_exception(error)
        self.close()

    def close(self) -> None:
        """Take back what is in the engine."""
        self._num_begun = len(self._requests)
        jobs, self._places = list(self._places), {}
        for job in jobs:
            self._stop(job)
