"""/v1/responses: a body in, a response out, whole or as a stream of events; and those that are kept.

Both are made of the same events. `create` is the whole one without HTTP, for offline batches.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from smollm3.server.body import read_json
from smollm3.server.chat_schema import agreed_thinking
from smollm3.server.chat_work import EFFORTS, Ask, Thinking, work_of
from smollm3.server.context import Context, context_of
from smollm3.server.errors import NotFoundError, RequestError
from smollm3.server.fields import read
from smollm3.server.model_names import check_model
from smollm3.server.replies import dumps, json_reply
from smollm3.server.responses_events import Item, ResponseEvents
from smollm3.server.responses_items import messages_of, output_messages, with_instructions
from smollm3.server.responses_schema import ResponsesRequest
from smollm3.server.service import Answering
from smollm3.server.sse import EventStream, error_body, unless_gone
from smollm3.server.tool_schema import NamedChoice
from smollm3.server.work import Work


@dataclass(frozen=True)
class _Run:
    """A response on its way: its events, and the chat that led to it."""

    context: Context
    request: ResponsesRequest
    messages: list[dict[str, Any]]
    answering: Answering
    events: ResponseEvents

    async def stream(self) -> AsyncIterator[Item]:
        """Yield the events; the response is kept before the last one goes out."""
        event: Item = {}
        async for event in self.events.stream(self.answering):
            if event["type"] in ("response.completed", "response.incomplete"):
                self._keep(event["response"])
            yield event

    async def whole(self) -> dict[str, Any]:
        event: Item = {}
        async for made in self.stream():
            event = made
        response: dict[str, Any] = event["response"]
        return response

    def _keep(self, response: dict[str, Any]) -> None:
        if self.request.store is not False:
            messages = [*self.messages, *output_messages(response["output"])]
            self.context.responses.put(response, messages, self.context.owner)


async def responses(request: Request) -> Response:
    """Answer an HTTP request."""
    run = await _start(context_of(request), await read_json(request))
    if run.request.stream:
        return EventStream(_frames(run), run.answering.close)
    return json_reply(await unless_gone(request.receive, run.answering.close, run.whole()))


async def create(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Return the response that `body` asks for; raises what `errors.reply_to` can tell."""
    run = await _start(context, body)
    try:
        if run.request.stream:
            raise RequestError("stream: there is no stream here: leave it out", param="stream")
        return await run.whole()
    finally:
        run.answering.close()


async def retrieve_response(request: Request) -> Response:
    """Return a response that was kept."""
    context, response_id = context_of(request), request.path_params["response_id"]
    stored = context.responses.get(response_id, context.owner)
    if stored is None:
        raise _unknown(response_id, "response_id")
    return json_reply(stored.response)


async def delete_response(request: Request) -> Response:
    """Forget a response that was kept."""
    context, response_id = context_of(request), request.path_params["response_id"]
    if not context.responses.delete(response_id, context.owner):
        raise _unknown(response_id, "response_id")
    return json_reply({"id": response_id, "object": "response", "deleted": True})


def _unknown(response_id: str, param: str) -> NotFoundError:
    return NotFoundError(
        f"{param}: there is no response {response_id!r} (any more): responses are kept in memory, the oldest "
        "are dropped, and store=false keeps none",
        param=param,
    )


async def _start(context: Context, body: dict[str, Any]) -> _Run:
    request = read(ResponsesRequest, body)
    check_model(context.service, request.model)
    messages = messages_of(request.input)
    if request.previous_response_id is not None:
        stored = context.responses.get(request.previous_response_id, context.owner)
        if stored is None:
            raise _unknown(request.previous_response_id, "previous_response_id")
        messages = [*stored.messages, *messages]
    work = await work_of(context, _ask(context, request, messages))
    top_logprobs = request.num_logprobs
    events = ResponseEvents(
        _begun(context, request, work), work, context.service.tokenizer, top_logprobs=top_logprobs
    )
    answering = context.service.answer(work, context.request_id)
    return _Run(context, request, messages, answering, events)


def _ask(context: Context, request: ResponsesRequest, messages: list[dict[str, Any]]) -> Ask:
    effort = request.reasoning.effort if request.reasoning else None
    asked = {
        "enable_thinking": request.enable_thinking,
        "reasoning.effort": None if effort is None else effort != "none",
    }
    thinking = Thinking(agreed_thinking(asked, request.thinking_budget), request.thinking_budget)
    if effort is not None and request.thinking_budget is None:
        thinking = Thinking(thinking.enabled, EFFORTS.get(effort), "reasoning.effort", "reasoning.effort")
    text_format = request.text.format if request.text else None
    return Ask(
        with_instructions(request.instructions, messages),
        request,
        thinking=thinking,
        tools=request.nested_tools,
        tool_choice=request.tool_choice,
        parallel_calls=request.parallel_tool_calls is not False,
        format=text_format.nested() if text_format else None,
        max_tokens=request.max_output_tokens,
        top_logprobs=request.num_logprobs,
        prompt_lookup=request.prompt_lookup,
        salt=context.salted(request.cache_salt),
        messages_field="input",
        tokens_field="max_output_tokens",
        format_field="text.format",
        function_field="",
    )


def _begun(context: Context, request: ResponsesRequest, work: Work) -> dict[str, Any]:
    """Return the response as it is before there is any output."""
    params, choice = work.params, request.tool_choice
    text_format = request.text.format if request.text else None
    return {
        "id": f"resp_{uuid4().hex}",  # not the request's id, which a client may choose
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "model": context.service.model_id,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": params.temperature if params.do_sample else 0.0,
        "text": {"format": text_format.model_dump(exclude_none=True, by_alias=True)}
        if text_format
        else {"format": {"type": "text"}},
        "tool_choice": {"type": "function", "name": choice.name}
        if isinstance(choice, NamedChoice)
        else choice or "auto",
        "tools": [
            {"description": None, "parameters": None, "strict": None, **tool.model_dump()}
            for tool in request.tools or ()
        ],
        "top_logprobs": request.num_logprobs or 0,
        "top_p": params.top_p if params.do_sample else 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
        "metadata": request.metadata or {},
    }


async def _frames(run: _Run) -> AsyncGenerator[bytes, None]:
    """Yield each event as a frame that is named after it; an error becomes response.failed."""
    try:
        async for event in run.stream():
            yield _frame(event)
    except Exception as error:
        yield _frame(run.events.failed(error_body(error)["error"]))


def _frame(event: Item) -> bytes:
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + dumps(event) + b"\n\n"
