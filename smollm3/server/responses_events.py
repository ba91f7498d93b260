"""Events in, the events of a streamed response out; the last of them holds the whole response.

Plain dicts, numbered as they go. An item is open at a time: thoughts, a message or a call.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

from smollm3.server.logprobs import ShownTokens, chat_logprobs
from smollm3.server.usage import response_usage
from smollm3.server.work import Event, Work
from smollm3.text.parser import Delta
from smollm3.text.tokenizer import Tokenizer
from smollm3.text.tool_calls import ToolCall

Item = dict[str, Any]


class ResponseEvents:
    """Makes the events of one response. `response` is the answer without output, as it starts."""

    def __init__(
        self, response: dict[str, Any], work: Work, tokenizer: Tokenizer, *, top_logprobs: int | None
    ) -> None:
        self._response = response
        self._work = work
        self._tokenizer = tokenizer
        self._top_logprobs = top_logprobs
        self._shown = ShownTokens(work.params.eos_token_ids)
        self._output: list[Item] = []
        self._texts: list[str] = []  # of the open item
        self._logprobs: list[dict[str, Any]] = []  # of the open item
        self._open: Item | None = None
        self._number = 0

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[Item]:
        """Yield every event, up to response.completed or response.incomplete."""
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)
        last = Event(0, ())
        async for last in events:
            for made in self._push(last):
                yield made
        complete = last.finish_reason == "stop"
        if not any(item["type"] != "reasoning" for item in self._output) and self._kind != "message":
            for made in self._enter("message"):
                yield made
        for made in self._leave(complete=complete):
            yield made
        status = "completed" if complete else "incomplete"
        yield self._event(f"response.{status}", response=self._whole(status, last))

    def failed(self, error: dict[str, Any]) -> Item:
        """Return the event that ends a response that went wrong."""
        told = {"code": "server_error", "message": error["message"]}
        response = {**self._response, "status": "failed", "error": told, "output": self._output}
        return self._event("response.failed", response=response)

    def _whole(self, status: str, last: Event) -> dict[str, Any]:
        reason = None if status == "completed" else {"reason": "max_output_tokens"}
        usage = response_usage(self._work, last)
        whole = {**self._response, "status": status, "incomplete_details": reason, "usage": usage}
        return {**whole, "output": self._output}

    @property
    def _kind(self) -> str | None:
        return None if self._open is None else str(self._open["type"])

    def _event(self, kind: str, **fields: Any) -> Item:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _push(self, event: Event) -> Iterator[Item]:
        logprobs: list[dict[str, Any]] = []
        if self._top_logprobs is not None:
            logprobs = chat_logprobs(self._shown.of(event), self._tokenizer, self._top_logprobs)
        for delta in event.deltas:
            if delta.tool_call is not None:
                yield from self._call(delta.tool_call)
                continue
            kind = "message" if delta.kind == "content" else "reasoning"
            if self._kind != kind:
                yield from self._leave()
                yield from self._enter(kind)
            yield self._text(kind, delta, logprobs)
            logprobs = []
        self._logprobs += logprobs  # of a character that is not complete yet

    def _text(self, kind: str, delta: Delta, logprobs: list[dict[str, Any]]) -> Item:
        self._texts.append(delta.text)
        if kind == "reasoning":
            return self._event("response.reasoning_text.delta", **self._place(), delta=delta.text)
        self._logprobs += logprobs
        return self._event("response.output_text.delta", **self._place(), delta=delta.text, logprobs=logprobs)

    def _place(self, *, part: bool = True) -> dict[str, Any]:
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": len(self._output)}
        return {**place, "content_index": 0} if part else place

    def _enter(self, kind: str) -> Iterator[Item]:
        """Open an item of text."""
        item: Item = {"id": f"{'msg' if kind == 'message' else 'rs'}_{uuid4().hex}", "type": kind}
        item["role" if kind == "message" else "summary"] = "assistant" if kind == "message" else []
        self._open, self._texts = {**item, "status": "in_progress", "content": []}, []
        yield self._event("response.output_item.added", output_index=len(self._output), item=self._open)
        yield self._event("response.content_part.added", **self._place(), part=self._part(""))

    def _part(self, text: str) -> Item:
        if self._kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        part: Item = {"type": "output_text", "text": text, "annotations": []}
        return part if self._top_logprobs is None else {**part, "logprobs": self._logprobs if text else []}

    def _leave(self, *, complete: bool = True) -> Iterator[Item]:
        """Close the item of text that is open, if one is."""
        if self._open is None:
            return
        text = "".join(self._texts)
        part = self._part(text)
        if self._kind == "reasoning":
            yield self._event("response.reasoning_text.done", **self._place(), text=text)
        else:
            yield self._event(
                "response.output_text.done", **self._place(), text=text, logprobs=part.get("logprobs", [])
            )
        yield self._event("response.content_part.done", **self._place(), part=part)
        status = "completed" if complete else "incomplete"
        item = {**self._open, "status": status, "content": [part]}
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open, self._logprobs = None, []

    def _call(self, call: ToolCall) -> Iterator[Item]:
        """Open and close an item for a call, which comes as a whole."""
        yield from self._leave()
        item = {
            "id": f"fc_{uuid4().hex}",
            "type": "function_call",
            "call_id": f"call_{uuid4().hex[:24]}",
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        self._open = item
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)
        place = self._place(part=False)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event(
            "response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments
        )
        item = {**item, "arguments": call.arguments, "status": "completed" if call.closed else "incomplete"}
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None
