"""The model as endpoints see it: Work in, an iterator of Events out; one engine for everybody.

The engine runs in a thread of its own; what it did in a step comes to the event loop in one call. Knows no
HTTP and none of OpenAI's words; an offline batch stands on it as the server does.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from smollm3.engine.engine import Engine, Request
from smollm3.engine.params import Pooling, SamplingParams
from smollm3.engine.stats import EngineStats
from smollm3.errors import ContextOverflowError
from smollm3.model.generation_config import GenerationConfig
from smollm3.server.answering import Answering, as_error
from smollm3.server.engine_thread import EngineThread, Job, Update
from smollm3.server.errors import EngineDeadError, QueueFullError, ShuttingDownError
from smollm3.server.log import note
from smollm3.server.pooled_texts import PooledTexts
from smollm3.server.work import Event, FinishReason, ParseOptions, Token, Work
from smollm3.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from smollm3.text.grammar import GrammarCompiler

__all__ = ["Answering", "Event", "FinishReason", "ParseOptions", "Service", "Token", "Work"]

log = logging.getLogger(__name__)

State = Literal["new", "ready", "draining", "dead", "closed"]
Result = TypeVar("Result")
_DEAD = "the engine has failed: the server must be started again"
_CLOSED = "the server is shutting down: ask another, or later"


class Service:
    """Answers many requests at once on one engine.

    Use it as `async with service:`, or call `start` and `close`, in the loop that the requests come from.

    Attributes:
        model_id: the name that clients ask for. context_size: ids of prompt and answer together.
        vocab_size: ids that the model knows. hidden_size: numbers of an embedding.
        defaults: how the checkpoint generates, eos ids included.
        prompt_lookup: whether requests that do not say guess tokens from their prompt.
        on_answered: is called with each answer that has ended, in whatever way. log_prompts: write them out.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        model_id: str,
        hidden_size: int,
        defaults: GenerationConfig | None = None,
        context_size: int | None = None,
        max_requests: int = 128,
        prompt_lookup: bool = False,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.model_id = model_id
        self.hidden_size = hidden_size
        self.defaults = defaults or GenerationConfig()
        self.context_size = min(context_size or engine.runner.context_size, engine.runner.context_size)
        self.vocab_size = engine.runner.vocab_size
        self.max_requests = max_requests
        self.prompt_lookup = prompt_lookup
        self.state: State = "new"
        self.log_prompts = False
        self.on_answered: Callable[[Answering], None] | None = None
        self._active: dict[Job, Answering] = {}
        self._texts: dict[Job, PooledTexts] = {}
        self._waiters: set[asyncio.Future[Any]] = set()  # for texts to pool, and for calls between steps
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = EngineThread(engine, self._deliver, self._died)

    @cached_property
    def grammar(self) -> "GrammarCompiler":
        """What makes the constraints of answers; MissingDependencyError without the package llguidance."""
        from smollm3.text.grammar import GrammarCompiler

        return GrammarCompiler(self.tokenizer, self.vocab_size, self.defaults.eos_ids)

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
        self._fail_all(ShuttingDownError(_CLOSED))
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
        return len(self._active) + len(self._waiters)

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
        if self.log_prompts:
            text = self.tokenizer.decode(work.prompt_ids)
            note(log, "prompt", request_id=request_id, prompt=text)
        began = asyncio.get_running_loop().time()
        answering = Answering(
            work, job, self.tokenizer, abort=self._thread.abort, on_end=self._end, began=began
        )
        self._active[job] = answering
        self._idle.clear()
        self._thread.add(job)
        return answering

    async def embed(self, prompts: Sequence[Sequence[int]], pooling: Pooling = "mean") -> list[list[float]]:
        """Return a vector of length 1 per text: the mean of its ids' last hidden states, or the last id's.

        Many texts run together, among other requests. Raises what `answer` raises.
        """
        self._check_open()
        requests = [Request(prompt_ids, SamplingParams(0, pooling=pooling)) for prompt_ids in prompts]
        for request in requests:
            if (num := len(request.prompt_ids)) > self.context_size:
                raise ContextOverflowError(
                    f"input of {num} tokens is over the context of {self.context_size}: shorten it"
                )
            self.engine.check(request)

        def start(texts: PooledTexts, job: Job) -> None:
            self._texts[job] = texts
            self._thread.add(job)

        def stop(job: Job) -> None:
            del self._texts[job]
            self._thread.abort(job)

        texts = PooledTexts(requests, start=start, stop=stop)
        self._waiters.add(texts.vectors)
        self._idle.clear()
        try:
            texts.go_on()
            return await texts.vectors
        finally:
            texts.close()
            self._waiters.discard(texts.vectors)
            self._note_idle()

    async def stats(self) -> EngineStats:
        """Return what the engine has done and what it holds; raises EngineDeadError, ShuttingDownError."""
        return await self._between_steps(self.engine.stats)

    async def _between_steps(self, function: Callable[[], Result]) -> Result:
        """Run a function in the engine's thread, where nothing else touches the engine."""
        if self.state in ("dead", "closed", "new"):
            raise EngineDeadError(_DEAD) if self.state == "dead" else ShuttingDownError(_CLOSED)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Result] = loop.create_future()

        def take(future: Future[Result]) -> None:
            if waiter.done():
                return
            if (error := future.exception()) is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(future.result())

        def hand_over(future: Future[Result]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(take, future)

        self._waiters.add(waiter)
        self._idle.clear()
        self._thread.call(function).add_done_callback(hand_over)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)
            self._note_idle()

    def _check_open(self) -> None:
        if self.state == "dead":
            raise EngineDeadError(_DEAD)
        if self.state != "ready":
            raise ShuttingDownError(_CLOSED, retry_after=5)
        if self.num_active >= self.max_requests:
            raise QueueFullError(
                f"{self.max_requests} requests are in work: try again in a moment", retry_after=1
            )

    def _end(self, answering: Answering) -> None:
        self._active.pop(answering.job, None)
        if answering.notes is not None:
            answering.notes.num_prompt += len(answering.work.prompt_ids)
            answering.notes.num_reused += answering.num_reused
            answering.notes.num_generated += answering.num_generated
        if self.on_answered is not None:
            self.on_answered(answering)
        self._note_idle()

    def _note_idle(self) -> None:
        if self.num_active == 0:
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
            self._loop.call_soon_threadsafe(self._fail_all, EngineDeadError(_DEAD))
        except RuntimeError:
            log.debug("the loop was closed before the engine failed")

    def _take(self, updates: Sequence[Update]) -> None:
        now = asyncio.get_running_loop().time()
        for job, update in updates:
            if (texts := self._texts.pop(job, None)) is not None:
                if isinstance(update, Exception):
                    texts.fail(as_error(update))
                else:
                    texts.take(job, update[-1])
                continue
            answering = self._active.get(job)
            if answering is None:  # given up meanwhile
                continue
            try:
                if isinstance(update, Exception):
                    answering.fail(as_error(update))
                else:
                    answering.take(update, now)
            except Exception as error:
                log.exception("a request failed")
                answering.fail(as_error(error))

    def _fail_all(self, error: Exception) -> None:
        for answering in list(self._active.values()):
            answering.fail(error)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)


def _request(work: Work) -> Request:
    return Request(work.prompt_ids, work.params, work.num_choices, work.salt)
