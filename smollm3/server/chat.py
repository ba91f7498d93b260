"""/v1/chat/completions: a body in, a chat completion out, whole or as a stream of chunks.

Both are made of the same chunks. `create` is the whole one without HTTP, for offline batches.
"""

import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from smollm3.server.body import read_json
from smollm3.server.chat_chunks import ChatChunks, Chunk, fold_chat
from smollm3.server.chat_schema import ChatRequest, plain_messages
from smollm3.server.chat_work import EFFORTS, Ask, Thinking, work_of
from smollm3.server.context import Context, context_of
from smollm3.server.errors import RequestError
from smollm3.server.fields import read
from smollm3.server.model_names import check_model
from smollm3.server.replies import json_reply
from smollm3.server.service import Answering
from smollm3.server.sse import EventStream, chat_frames, unless_gone


async def chat_completions(request: Request) -> Response:
    """Answer an HTTP request."""
    context = context_of(request)
    chat = read(ChatRequest, await read_json(request))
    answering = await _answer(context, chat)
    if chat.stream:
        chunks = _chunks(context, chat, answering, with_usage=chat.include_usage)
        return EventStream(chat_frames(chunks), answering.close)
    whole = fold_chat(_chunks(context, chat, answering, with_usage=True))
    return json_reply(await unless_gone(request.receive, answering.close, whole))


async def create(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Return the completion that `body` asks for; raises what `errors.reply_to` can tell."""
    chat = read(ChatRequest, body)
    if chat.stream:
        raise RequestError("stream: there is no stream here: leave it out", param="stream")
    async with await _answer(context, chat) as answering:
        return await fold_chat(_chunks(context, chat, answering, with_usage=True))


async def _answer(context: Context, chat: ChatRequest) -> Answering:
    check_model(context.service, chat.model)
    work = await work_of(context, _ask(context, chat))
    return context.service.answer(work, context.request_id)


def _chunks(
    context: Context, chat: ChatRequest, answering: Answering, *, with_usage: bool
) -> AsyncIterator[Chunk]:
    head = {
        "id": f"chatcmpl-{uuid4().hex}",
        "created": int(time.time()),
        "model": context.service.model_id,
    }
    top_logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
    made = ChatChunks(head, answering.work, context.service.tokenizer, top_logprobs=top_logprobs)
    return made.stream(answering, with_usage=with_usage)


def _ask(context: Context, chat: ChatRequest) -> Ask:
    return Ask(
        plain_messages(chat.messages),
        chat,
        thinking=_thinking(chat),
        tools=chat.tools or (),
        tool_choice=chat.tool_choice,
        parallel_calls=chat.parallel_tool_calls is not False,
        format=chat.response_format,
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        num_choices=chat.num_choices,
        stop=tuple(chat.stop or ()),
        top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        continue_final_message=bool(chat.continue_final_message),
        add_generation_prompt=chat.add_generation_prompt is not False,
        prompt_lookup=chat.prompt_lookup,
        salt=context.salted(chat.cache_salt),
        tokens_field="max_completion_tokens" if chat.max_completion_tokens else "max_tokens",
    )


def _thinking(chat: ChatRequest) -> Thinking:
    enabled = chat.thinking
    effort = chat.reasoning_effort
    budget = chat.thinking_budget
    if effort is not None and chat.enable_thinking is None and budget is None:
        return Thinking(enabled, EFFORTS.get(effort), "reasoning_effort", "reasoning_effort")
    return Thinking(enabled, budget)
