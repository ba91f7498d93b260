"""The model as endpoints see it: Work in, an iterator of Events out; one engine for everybody.

The engine runs in a thread of its own; what it did in a step comes to the event loop in one call. Knows no
HTTP and none of OpenAI's words; an offline batch stands on it as the server does.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Literal, Self

from smollm3.engine.engine import Engine, Request
from smollm3.errors import ContextOverflowError
from smollm3.model.generation_config import GenerationConfig
from smollm3.server.answering import Answering, as_error
from smollm3.server.engine_thread import EngineThread, Job, Update
from smollm3.server.errors import EngineDeadError, QueueFullError, ShuttingDownError
from smollm3.server.work import Event, FinishReason, ParseOptions, Token, Work
from smollm3.text.tokenizer import Tokenizer

__all__ = ["Answering", "Event", "FinishReason", "ParseOptions", "Service", "Token", "Work"]

log = logging.getLogger(__name__)

State = Literal["new", "ready", "draining", "dead", "closed"]


class Service:
    """Answers many requests at once on one engine.

    Use it as `async with service:`, or call `start` and `close`, in the loop that the requests come from.

    Attributes:
        model_id: the name that clients ask for. context_size: ids of prompt and answer together.
        vocab_size: ids that the model knows. defaults: how the checkpoint generates, eos ids included.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        model_id: str,
        defaults: GenerationConfig | None = None,
        context_size: int | None = None,
        max_requests: int = 128,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.model_id = model_id
        self.defaults = defaults or GenerationConfig()
        self.context_size = min(context_size or engine.runner.context_size, engine.runner.context_size)
        self.vocab_size = engine.runner.vocab_size
        self.max_requests = max_requests
        self.state: State = "new"
        self._active: dict[Job, Answering] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = EngineThread(engine, self._deliver, self._died)

    # Life

    async def start(self) -> None:
        """Start the engine's thread; requests come from the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self.state = "ready"

    def drain(self) -> None:
        """Take nothing new from now on."""
        if self.state == "ready":
            self.state = "draining"

    async def drained(self) -> None:
        """Wait until no request is left."""
        await self._idle.wait()

    async def close(self) -> None:
        """Give up what is left and end the engine's thread."""
        if self.state not in ("dead", "new"):
            self.state = "closed"
        self._fail_all(ShuttingDownError("the server is shutting down: ask another, or later"))
        if self._thread.alive:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.stop)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def num_active(self) -> int:
        """Requests that wait or run."""
        return len(self._active)

    # Requests

    def check(self, work: Work) -> None:
        """Raise ContextOverflowError, PromptError or ParameterError if `work` can never run."""
        num_prompt, num_new = len(work.prompt_ids), work.params.max_new_tokens
        if num_prompt + num_new > self.context_size:
            raise ContextOverflowError(
                f"prompt of {num_prompt} tokens + {num_new} tokens of answer = {num_prompt + num_new} "
                f"is over the context of {self.context_size}: shorten one of the two"
            )
        self.engine.check(_request(work))

    def answer(self, work: Work, request_id: str) -> Answering:
        """Queue `work` now and return the iterator over its events; close it to give the request up.

        Raises what `check` raises, QueueFullError, ShuttingDownError or EngineDeadError before anything is
        queued; the iterator raises what goes wrong later.
        """
        self._check_open()
        self.check(work)
        job = Job(_request(work))
        answering = Answering(work, job, self.tokenizer, abort=self._thread.abort, on_end=self._forget)
        self._active[job] = answering
        self._idle.clear()
        self._thread.add(job)
        return answering

    def _check_open(self) -> None:
        if self.state == "dead":
            raise EngineDeadError("the engine has failed: the server must be started again")
        if self.state != "ready":
            raise ShuttingDownError("the server is shutting down: ask another, or later", retry_after=5)
        if len(self._active) >= self.max_requests:
            raise QueueFullError(
                f"{self.max_requests} requests are in work: try again in a moment", retry_after=1
            )

    def _forget(self, answering: Answering) -> None:
        self._active.pop(answering.job, None)
        if not self._active:
            self._idle.set()

    # The engine's side: the first two are called in its thread

    def _deliver(self, updates: Sequence[Update]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._take, updates)
        except RuntimeError:  # the loop is gone: nobody waits for anything
            log.debug("updates after the loop was closed are dropped")

    def _died(self, error: BaseException) -> None:
        assert self._loop is not None
        log.critical("the engine failed", exc_info=error)
        self.state = "dead"
        try:
            self._loop.call_soon_threadsafe(
                self._fail_all, EngineDeadError("the engine has failed: the server must be started again")
            )
        except RuntimeError:
            log.debug("the loop was closed before the engine failed")

    def _take(self, updates: Sequence[Update]) -> None:
        for job, update in updates:
            answering = self._active.get(job)
            if answering is None:  # given up meanwhile
                continue
            try:
                if isinstance(update, Exception):
                    answering.fail(as_error(update))
                else:
                    answering.take(update)
            except Exception as error:
                log.exception("a request failed")
                answering.fail(as_error(error))

    def _fail_all(self, error: Exception) -> None:
        for answering in list(self._active.values()):
            answering.fail(error)


def _request(work: Work) -> Request:
    return Request(work.prompt_ids, work.params, work.num_choices)
