"""/tokenize and /detokenize: text or messages to ids, and ids to text, without the model."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from smollm3.server.body import read_json
from smollm3.server.context import Context, context_of
from smollm3.server.errors import RequestError
from smollm3.server.fields import Fields, read
from smollm3.server.model_names import check_model
from smollm3.server.replies import json_reply
from smollm3.text.prompt import build_prompt

MAX_IDS = 1_000_000  # of one call


class TokenizeRequest(Fields):
    """A text as `prompt`, or a chat as `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    enable_thinking: bool | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Fields):
    """Ids to text."""

    model: str | None = None
    tokens: list[int]


async def tokenize(request: Request) -> Response:
    """Return the ids of a text or a chat."""
    context = context_of(request)
    asked = read(TokenizeRequest, await read_json(request))
    return json_reply(await asyncio.to_thread(_tokenized, context, asked))


async def detokenize(request: Request) -> Response:
    """Return the text of ids, special tokens included."""
    context = context_of(request)
    asked = read(DetokenizeRequest, await read_json(request))
    _check(context, asked.model)
    size = len(context.service.tokenizer)
    if len(asked.tokens) > MAX_IDS:
        raise RequestError(f"tokens: {len(asked.tokens)} ids, at most {MAX_IDS}", param="tokens")
    for idx, token_id in enumerate(asked.tokens):
        if not 0 <= token_id < size:
            raise RequestError(
                f"tokens[{idx}]: {token_id} is not in the vocabulary: 0 to {size - 1}", param=f"tokens[{idx}]"
            )
    text = await asyncio.to_thread(context.service.tokenizer.decode, asked.tokens)
    return json_reply({"prompt": text})


def _check(context: Context, model: str | None) -> None:
    if model is not None:
        check_model(context.service, model)


def _tokenized(context: Context, asked: TokenizeRequest) -> dict[str, Any]:
    _check(context, asked.model)
    tokenizer = context.service.tokenizer
    if (asked.prompt is None) == (asked.messages is None):
        raise RequestError("prompt: send either prompt or messages", param="prompt")
    if asked.messages is not None:
        prompt = build_prompt(
            tokenizer,
            asked.messages,
            tools=asked.tools,
            enable_thinking=asked.enable_thinking,
            add_generation_prompt=asked.add_generation_prompt,
        )
        ids = prompt.ids
    else:
        if asked.tools is not None or asked.enable_thinking is not None:
            name = "tools" if asked.tools is not None else "enable_thinking"
            raise RequestError(f"{name}: belongs to messages: leave it out with prompt", param=name)
        ids = tokenizer.encode(asked.prompt or "", add_special_tokens=asked.add_special_tokens)
    reply: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": context.service.context_size,
        "tokens": ids,
    }
    if asked.return_token_strs:
        reply["token_strs"] = [tokenizer.id_to_token(token_id) for token_id in ids]
    return reply
