"""One request's answers while they are made: engine outputs in, events out to whoever reads them.

Lives in the event loop's thread. Detokenizing, stop strings and parsing happen as outputs come, so that a
stop string ends its choice at once even when the reader is slow.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from smollm3.engine.sample import TokenOutput
from smollm3.errors import ConstraintError, SmolLM3Error
from smollm3.server.engine_thread import Job
from smollm3.server.errors import FormError, GenerationError, SlowClientError
from smollm3.server.notes import NOTES
from smollm3.server.work import Event, Token, Work
from smollm3.text.answer import AnswerText
from smollm3.text.parser import Delta, ResponseParser
from smollm3.text.tokenizer import Tokenizer

MAX_WAITING_EVENTS = 8192  # events that nobody has read: about a minute of eight fast answers


_MakeToken = Callable[[TokenOutput], Token]


class _Choice:
    """One answer's text and counts."""

    def __init__(self, work: Work, tokenizer: Tokenizer) -> None:
        parse = work.parse
        parser = None
        if parse is not None:
            parser = ResponseParser(
                thinking_open=parse.thinking_open, tool_calls=parse.tool_calls, code=parse.code
            )
        self.text = AnswerText(
            tokenizer, stop_strings=work.stop, parser=parser, eos_token_ids=work.params.eos_token_ids
        )
        self.ended = False
        self.num_generated = 0
        self.num_reasoning = 0

    def take(
        self, outputs: Sequence[TokenOutput], make_token: Callable[[TokenOutput], Token] | None
    ) -> Event:
        """Take in a step's ids; those after a stop string are dropped."""
        text = self.text
        deltas: list[Delta] = []
        tokens: list[Token] = []
        for output in outputs:
            if output.token_id < 0:  # nothing but the prompt was asked about
                continue
            was_thinking = text.thinking
            deltas += text.push(output.token_id)
            self.num_generated += 1
            self.num_reasoning += was_thinking or text.thinking
            if make_token is not None:
                tokens.append(make_token(output))
            if text.stop_string is not None:
                break
        finish_reason = output.finish_reason if text.stop_string is None else "stop"
        if finish_reason is not None:
            self.ended = True
            deltas += text.finish()
        return Event(
            output.sample_idx,
            tuple(deltas),
            tuple(tokens),
            finish_reason,
            text.stop_string,
            self.num_generated,
            self.num_reasoning,
            output.num_reused,
            outputs[0].prompt_scores,
        )


class Answering:
    """An iterator over a request's events; `aclose`, or cancelling who waits in it, frees the engine's slots.

    `on_end` is called once, when the last choice has ended, failed or been given up; `abort(sample_idx)`
    drops one sample in the engine, or all with None.
    """

    def __init__(
        self,
        work: Work,
        job: Job,
        tokenizer: Tokenizer,
        *,
        abort: Callable[[Job, int | None], None],
        on_end: Callable[["Answering"], None],
        began: float = 0.0,
    ) -> None:
        """`began` is the loop's time, as is `take`'s `now`."""
        self.work = work
        self.job = job
        self._tokenizer = tokenizer
        self._abort = abort
        self._on_end = on_end
        self._began = began
        self._first: float | None = None  # when the first and the last ids came
        self._last = began
        self.given_up = False
        self.num_reused = 0
        self.notes = NOTES.get()
        self._make_token = self._token if work.with_tokens or work.params.logprobs is not None else None
        self._choices = [_Choice(work, tokenizer) for _ in range(work.num_choices)]
        self._num_left = work.num_choices
        self._events: deque[Event] = deque()
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the engine has nothing left to do for it."""
        return self._num_left == 0

    @property
    def num_generated(self) -> int:
        """Ids of all choices so far."""
        return sum(choice.num_generated for choice in self._choices)

    @property
    def first_seconds(self) -> float | None:
        """From the queueing to the first id; None while there is none."""
        return None if self._first is None else self._first - self._began

    @property
    def token_seconds(self) -> float | None:
        """Between two ids of one choice, on average; None while no choice has two."""
        num = max(choice.num_generated for choice in self._choices) - 1
        return None if self._first is None or num < 1 else (self._last - self._first) / num

    # The service's side

    def take(self, outputs: Sequence[TokenOutput], now: float = 0.0) -> None:
        """Take in what a step did to one sample."""
        last = outputs[-1]
        choice = self._choices[last.sample_idx]
        if choice.ended:
            return
        if last.error is not None:
            kind = FormError if isinstance(last.error, ConstraintError) else GenerationError
            self.fail(kind(str(last.error)))
            return
        event = choice.take(outputs, self._make_token)
        if event.num_generated:
            self._first, self._last = now if self._first is None else self._first, now
        self.num_reused = event.num_reused
        self._events.append(event)
        if event.finish_reason is not None:
            if last.finish_reason is None:
                self._abort(self.job, last.sample_idx)
            self._num_left -= 1
            if self._num_left == 0:
                self._on_end(self)
        elif len(self._events) > MAX_WAITING_EVENTS:
            self.fail(SlowClientError("the answer was not read as it came: read faster, or do not stream"))
            return
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the request with an error; events that came before it are still read."""
        if not self.ended:
            self._error = error
            self.close()

    # The reader's side

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self.ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.close()
                raise
            finally:
                self._waiter = None
        return self._events.popleft()

    def close(self) -> None:
        """Give the request up; nothing happens if it has ended."""
        if not self.ended:
            self.given_up = True
            self._abort(self.job, None)
            self._num_left = 0
            for choice in self._choices:
                choice.ended = True
            self._on_end(self)
        self._wake()

    async def aclose(self) -> None:
        self._events.clear()
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _token(self, output: TokenOutput) -> Token:
        raw = self._tokenizer.token_bytes(output.token_id)
        text = raw.decode("utf-8", "replace")
        return Token(output.token_id, text, raw, output.logprob, output.top_logprobs)


def as_error(error: Exception) -> Exception:
    """Return what a reader gets for an exception of the engine; errors that a client can mend stay."""
    if isinstance(error, SmolLM3Error):
        return error
    wrapped = GenerationError("this request failed while it ran; the server's log says why")
    wrapped.__cause__ = error
    return wrapped
