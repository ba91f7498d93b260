"""Events in, the chunks of a plain completion out; and the whole completion, folded from those."""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

from smollm3.server.logprobs import ShownTokens, plain_logprobs
from smollm3.server.usage import usage_of
from smollm3.server.work import Event, Work
from smollm3.text.tokenizer import Tokenizer

Chunk = dict[str, Any]


class CompletionChunks:
    """Makes the chunks: choice i*n + j is the j-th answer to prompt i. `num_top` None: no logprobs."""

    def __init__(
        self,
        head: Mapping[str, Any],
        works: Sequence[Work],
        tokenizer: Tokenizer,
        echoes: Sequence[str],
        *,
        num_top: int | None,
    ) -> None:
        self._head = head
        self._works = works
        self._tokenizer = tokenizer
        self._echoes = echoes
        self._num_top = num_top
        self._last: dict[tuple[int, int], Event] = {}
        num = sum(work.num_choices for work in works)
        self._shown = [ShownTokens(works[0].params.eos_token_ids, reasoning=True) for _ in range(num)]
        self._offsets = [0] * num

    async def stream(
        self, events: AsyncIterable[tuple[int, Event]], *, with_usage: bool
    ) -> AsyncIterator[Chunk]:
        """Yield every chunk: echoes, then what comes, then the usage if wanted."""
        extra = {"usage": None} if with_usage else {}
        for work_idx, echo in enumerate(self._echoes):
            for sample_idx in range(self._works[work_idx].num_choices) if echo else ():
                yield {**self._chunk(self._place(work_idx, sample_idx), echo), **extra}
        async for work_idx, event in events:
            chunk = self._of(work_idx, event)
            if chunk is not None:
                yield {**chunk, **extra} if extra else chunk
        if with_usage:
            yield {**self._head, "choices": [], "usage": usage_of(self._works, self._last)}

    def _place(self, work_idx: int, sample_idx: int) -> int:
        return work_idx * self._works[0].num_choices + sample_idx

    def _of(self, work_idx: int, event: Event) -> Chunk | None:
        self._last[work_idx, event.choice_idx] = event
        idx = self._place(work_idx, event.choice_idx)
        text = "".join(delta.text for delta in event.deltas)
        logprobs = None
        if self._num_top is not None and (shown := self._shown[idx].of(event)):
            logprobs = plain_logprobs(shown, self._tokenizer, self._num_top, self._offsets[idx])
            self._offsets[idx] += sum(len(token.text) for token in shown)
        if not text and logprobs is None and event.finish_reason is None:
            return None
        return self._chunk(idx, text, logprobs, event.finish_reason)

    def _chunk(
        self,
        idx: int,
        text: str,
        logprobs: dict[str, list[Any]] | None = None,
        finish_reason: str | None = None,
    ) -> Chunk:
        choice = {"index": idx, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


async def fold_completion(chunks: AsyncIterator[Chunk]) -> dict[str, Any]:
    """Return the completion that a stream of chunks, with its usage, amounts to."""
    choices: dict[int, dict[str, Any]] = {}
    texts: dict[int, list[str]] = {}
    chunk: Chunk = {}
    async for chunk in chunks:
        for part in chunk["choices"]:
            idx = part["index"]
            choice = choices.setdefault(idx, {**part, "logprobs": None})
            texts.setdefault(idx, []).append(part["text"])
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
            if part["logprobs"] is not None:
                choice["logprobs"] = _joined(choice["logprobs"], part["logprobs"])
    for idx, choice in choices.items():
        choice["text"] = "".join(texts[idx])
    return {**chunk, "choices": [choices[idx] for idx in sorted(choices)]}


def _joined(before: Mapping[str, list[Any]] | None, more: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: (before[name] if before else []) + values for name, values in more.items()}
