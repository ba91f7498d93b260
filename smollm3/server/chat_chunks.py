"""Events in, the chunks of a chat completion out; and the whole completion, folded from those very chunks.

Plain dicts on both sides: nothing is checked here, once per token.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from uuid import uuid4

from smollm3.server.logprobs import ShownTokens, chat_logprobs
from smollm3.server.usage import usage_of
from smollm3.server.work import Event, Work
from smollm3.text.parser import Delta
from smollm3.text.tokenizer import Tokenizer

Chunk = dict[str, Any]


class ChatChunks:
    """Makes the chunks of one completion. `top_logprobs` None leaves log-probabilities out."""

    def __init__(
        self, head: Mapping[str, Any], work: Work, tokenizer: Tokenizer, *, top_logprobs: int | None
    ) -> None:
        self._head = {**head, "object": "chat.completion.chunk"}
        self._work = work
        self._tokenizer = tokenizer
        self._top_logprobs = top_logprobs
        self._shown = [ShownTokens(work.params.eos_token_ids) for _ in range(work.num_choices)]
        self._called = [False] * work.num_choices
        self._last: dict[tuple[int, int], Event] = {}

    async def stream(self, events: AsyncIterator[Event], *, with_usage: bool) -> AsyncIterator[Chunk]:
        """Yield every chunk: each choice's role, then what comes, then the usage if wanted."""
        extra = {"usage": None} if with_usage else {}
        for choice_idx in range(self._work.num_choices):
            yield {**self._chunk(choice_idx, {"role": "assistant", "content": ""}), **extra}
        async for event in events:
            for chunk in self._push(event):
                yield {**chunk, **extra} if extra else chunk
        if with_usage:
            yield {**self._head, "choices": [], "usage": usage_of([self._work], self._last)}

    def _push(self, event: Event) -> Iterator[Chunk]:
        self._last[0, event.choice_idx] = event
        logprobs = None
        if self._top_logprobs is not None:
            shown = self._shown[event.choice_idx].of(event)
            entries = chat_logprobs(shown, self._tokenizer, self._top_logprobs)
            logprobs = {"content": entries, "refusal": None} if entries else None
        deltas = [fields for delta in event.deltas for fields in self._fields(event.choice_idx, delta)]
        if logprobs is not None and not deltas:
            deltas = [{"content": ""}]
        for fields in deltas:
            yield self._chunk(event.choice_idx, fields, logprobs)
            logprobs = None
        if event.finish_reason is not None:
            calls = self._called[event.choice_idx] and event.finish_reason == "stop"
            finish_reason = "tool_calls" if calls and event.stop_string is None else event.finish_reason
            yield self._chunk(event.choice_idx, {}, None, finish_reason)

    def _fields(self, choice_idx: int, delta: Delta) -> list[dict[str, Any]]:
        call = delta.tool_call
        if call is None:
            return [{"content" if delta.kind == "content" else "reasoning_content": delta.text}]
        self._called[choice_idx] = True
        opening = {
            "index": call.idx,
            "id": f"call_{uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }
        return [
            {"tool_calls": [opening]},
            {"tool_calls": [{"index": call.idx, "function": {"arguments": call.arguments}}]},
        ]

    def _chunk(
        self,
        choice_idx: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> Chunk:
        choice = {"index": choice_idx, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


async def fold_chat(chunks: AsyncIterator[Chunk]) -> dict[str, Any]:
    """Return the completion that a stream of chunks, with its usage, amounts to."""
    choices: dict[int, _Choice] = {}
    chunk: Chunk = {}
    async for chunk in chunks:
        for part in chunk["choices"]:
            choices.setdefault(part["index"], _Choice()).add(part)
    head = {name: value for name, value in chunk.items() if name not in ("choices", "object", "usage")}
    return {
        **head,
        "object": "chat.completion",
        "choices": [{"index": idx, **choices[idx].whole()} for idx in sorted(choices)],
        "usage": chunk.get("usage"),
    }


class _Choice:
    """One choice's chunks, put together."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[dict[str, Any]] | None = None
        self._finish_reason: str | None = None

    def add(self, part: Mapping[str, Any]) -> None:
        delta = part["delta"]
        for name in ("content", "reasoning_content"):
            if name in delta:
                self._texts.setdefault(name, []).append(delta[name])
        for piece in delta.get("tool_calls", ()):
            idx = piece["index"]
            if "id" in piece:
                self._calls[idx] = {"id": piece["id"], "type": "function", "function": {**piece["function"]}}
            else:
                self._calls[idx]["function"]["arguments"] += piece["function"]["arguments"]
        if part["logprobs"] is not None:
            self._logprobs = (self._logprobs or []) + part["logprobs"]["content"]
        self._finish_reason = part["finish_reason"] or self._finish_reason

    def whole(self) -> dict[str, Any]:
        content = "".join(self._texts.get("content", ()))
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not self._calls else None,
            "refusal": None,
        }
        if "reasoning_content" in self._texts:
            message["reasoning_content"] = "".join(self._texts["reasoning_content"])
        if self._calls:
            message["tool_calls"] = [self._calls[idx] for idx in sorted(self._calls)]
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        return {"message": message, "logprobs": logprobs, "finish_reason": self._finish_reason}
