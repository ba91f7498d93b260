"""/v1/completions: prompts in, what the model says next out, whole or as a stream of chunks.

Both are made of the same chunks. `create` is the whole one without HTTP, for offline batches.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from smollm3.server.body import read_json
from smollm3.server.chat_prompt import blamed_on, new_tokens
from smollm3.server.completion_chunks import Chunk, CompletionChunks, fold_completion
from smollm3.server.completions_schema import CompletionRequest
from smollm3.server.context import Context, context_of
from smollm3.server.errors import RequestError
from smollm3.server.fields import read
from smollm3.server.merged_events import MergedEvents
from smollm3.server.model_names import check_model
from smollm3.server.replies import json_reply
from smollm3.server.sampling_fields import sampling_params
from smollm3.server.sse import EventStream, chat_frames, unless_gone
from smollm3.server.work import Work
from smollm3.text.prompt import build_prompt

DEFAULT_MAX_TOKENS = 16
MAX_SCORES = 2**18  # log-probabilities of prompts in one reply: some 10 MB of JSON


@dataclass(frozen=True)
class _Asked:
    """The works of a request, one per prompt, and the texts that go before their answers."""

    request: CompletionRequest
    works: Sequence[Work]
    echoes: Sequence[str]


async def completions(request: Request) -> Response:
    """Answer an HTTP request."""
    context = context_of(request)
    asked = await _asked(context, await read_json(request))
    events = MergedEvents(context, asked.works)
    if asked.request.stream:
        chunks = _chunks(context, asked, events, with_usage=asked.request.include_usage)
        return EventStream(chat_frames(chunks), events.close)
    whole = fold_completion(_chunks(context, asked, events, with_usage=True))
    return json_reply(await unless_gone(request.receive, events.close, whole))


async def create(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Return the completion that `body` asks for; raises what `errors.reply_to` can tell."""
    asked = await _asked(context, body)
    if asked.request.stream:
        raise RequestError("stream: there is no stream here: leave it out", param="stream")
    events = MergedEvents(context, asked.works)
    try:
        return await fold_completion(_chunks(context, asked, events, with_usage=True))
    finally:
        events.close()


async def _asked(context: Context, body: dict[str, Any]) -> _Asked:
    request = read(CompletionRequest, body)
    check_model(context.service, request.model)
    return await asyncio.to_thread(_works, context, request)


def _works(context: Context, request: CompletionRequest) -> _Asked:
    works, echoes = [], []
    for idx, prompt in enumerate(request.prompts):
        field = "prompt" if len(request.prompts) == 1 else f"prompt[{idx}]"
        works.append(_work(context, request, prompt, field))
        if not request.echo:
            echoes.append("")
        elif isinstance(prompt, str) and not request.scores_prompt:
            echoes.append(prompt)
        else:  # a scored prompt's text is that of its tokens, which text_offset counts
            echoes.append(context.service.tokenizer.decode(works[-1].prompt_ids))
    num_tokens = sum(work.num_choices * work.params.max_new_tokens for work in works)
    budget = context.service.context_size
    if len(works) > 1 and num_tokens > budget:
        raise RequestError(
            f"prompt: {len(works)} prompts of n={request.num_choices} answers are {num_tokens} tokens, over "
            f"the budget of {budget}: send fewer or lower max_tokens",
            param="prompt",
        )
    num_scores = sum(len(work.prompt_ids) * work.num_choices for work in works) * (
        1 + (request.logprobs or 0)
    )
    if request.scores_prompt and num_scores > MAX_SCORES:
        raise RequestError(
            f"logprobs: with echo these prompts have {num_scores} log-probabilities, and a reply holds "
            f"{MAX_SCORES} at most: send fewer prompts at once, or lower n or logprobs",
            param="logprobs",
        )
    return _Asked(request, works, echoes)


def _work(context: Context, request: CompletionRequest, prompt: str | list[int], field: str) -> Work:
    service = context.service
    if isinstance(prompt, str):
        with blamed_on(field):
            prompt_ids = build_prompt(service.tokenizer, prompt).ids
    else:
        prompt_ids = prompt
        largest = max(prompt_ids)
        if largest >= service.vocab_size:
            raise RequestError(
                f"{field}: there is no token id {largest}: give ids 0 to {service.vocab_size - 1}",
                param=field,
            )
    asked = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    max_new_tokens = new_tokens(
        asked
        if request.max_tokens is not None
        else min(asked, max(service.context_size - len(prompt_ids), 1)),
        num_prompt=len(prompt_ids),
        num_choices=request.num_choices,
        context_size=service.context_size,
        prompt_field=field,
        tokens_field="max_tokens",
    )
    params = sampling_params(
        request,
        service.defaults,
        max_new_tokens=max_new_tokens,
        eos_token_ids=service.defaults.eos_ids,
        vocab_size=service.vocab_size,
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.scores_prompt else None,
        prompt_lookup=service.prompt_lookup if request.prompt_lookup is None else request.prompt_lookup,
    )
    return Work(
        prompt_ids,
        params,
        num_choices=request.num_choices,
        stop=tuple(request.stop or service.defaults.stop_list),
        salt=context.salted(request.cache_salt),
    )


def _chunks(
    context: Context, asked: _Asked, events: MergedEvents, *, with_usage: bool
) -> AsyncIterator[Chunk]:
    head = {
        "id": f"cmpl-{uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": context.service.model_id,
    }
    made = CompletionChunks(
        head, asked.works, context.service.tokenizer, asked.echoes, num_top=asked.request.logprobs
    )
    return made.stream(events, with_usage=with_usage)
