"""Events in, the chunks of a plain completion out; and the whole completion, folded from those."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

from smollm3.engine.reading import PromptScores
from smollm3.server.logprobs import ShownTokens, TextOffsets, plain_logprobs, prompt_tokens
from smollm3.server.usage import usage_of
from smollm3.server.work import Event, Work
from smollm3.text.tokenizer import Tokenizer

Chunk = dict[str, Any]
ECHOED_TOKENS = 256  # of a scored prompt in one chunk


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
        eos_token_ids = works[0].params.eos_token_ids
        scored = works[0].params.prompt_logprobs is not None
        self._shown: list[ShownTokens] = []
        self._offsets: list[TextOffsets] = []
        for work, echo in zip(works, echoes, strict=True):
            for _ in range(work.num_choices):
                # Who scores prompts counts on an entry for every token, as OpenAI's has it.
                self._shown.append(ShownTokens(eos_token_ids, reasoning=True, ending=scored))
                hidden = eos_token_ids.union(tokenizer.special_ids)
                self._offsets.append(TextOffsets(tokenizer, len(echo) if scored else 0, hidden))

    async def stream(
        self, events: AsyncIterable[tuple[int, Event]], *, with_usage: bool
    ) -> AsyncIterator[Chunk]:
        """Yield every chunk: echoes, then what comes, then the usage if wanted."""
        extra = {"usage": None} if with_usage else {}
        for work_idx, echo in enumerate(self._echoes):
            work = self._works[work_idx]
            for sample_idx in range(work.num_choices if echo and work.params.prompt_logprobs is None else 0):
                yield {**self._chunk(self._place(work_idx, sample_idx), echo), **extra}
        async for work_idx, event in events:
            if event.prompt_scores is not None:
                async for echoed in self._scored_echo(work_idx, event.choice_idx, event.prompt_scores):
                    yield {**echoed, **extra}
            chunk = self._of(work_idx, event)
            if chunk is not None:
                yield {**chunk, **extra} if extra else chunk
        if with_usage:
            yield {**self._head, "choices": [], "usage": usage_of(self._works, self._last)}

    async def _scored_echo(
        self, work_idx: int, choice_idx: int, scores: PromptScores
    ) -> AsyncIterator[Chunk]:
        """Yield the prompt's text with its tokens' scores, in pieces between which others have the loop."""
        assert self._num_top is not None
        prompt_ids, echo = self._works[work_idx].prompt_ids, self._echoes[work_idx]
        offsets = TextOffsets(self._tokenizer)
        for start in range(0, len(prompt_ids), ECHOED_TOKENS):
            end = min(start + ECHOED_TOKENS, len(prompt_ids))
            tokens = prompt_tokens(prompt_ids, scores, self._tokenizer, start, end)
            begin = offsets.end
            logprobs = plain_logprobs(tokens, self._tokenizer, self._num_top, offsets)
            text = echo[begin : offsets.end if end < len(prompt_ids) else None]
            yield self._chunk(self._place(work_idx, choice_idx), text, logprobs)
            await asyncio.sleep(0)

    def _place(self, work_idx: int, sample_idx: int) -> int:
        return work_idx * self._works[0].num_choices + sample_idx

    def _of(self, work_idx: int, event: Event) -> Chunk | None:
        self._last[work_idx, event.choice_idx] = event
        idx = self._place(work_idx, event.choice_idx)
        text = "".join(delta.text for delta in event.deltas)
        logprobs = None
        if self._num_top is not None and (shown := self._shown[idx].of(event)):
            logprobs = plain_logprobs(shown, self._tokenizer, self._num_top, self._offsets[idx])
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
                lists = choice["logprobs"] = choice["logprobs"] or {name: [] for name in part["logprobs"]}
                for name, values in part["logprobs"].items():
                    lists[name] += values
    for idx, choice in choices.items():
        choice["text"] = "".join(texts[idx])
    return {**chunk, "choices": [choices[idx] for idx in sorted(choices)]}
