"""/v1/embeddings: texts or token ids in, a vector of length 1 for each out, pooled from hidden states."""

import asyncio
import base64
from array import array
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from smollm3.server.body import read_json
from smollm3.server.chat_prompt import blamed_on
from smollm3.server.completions_schema import read_texts_or_ids
from smollm3.server.context import Context, context_of
from smollm3.server.errors import RequestError
from smollm3.server.fields import Fields, read
from smollm3.server.model_names import check_model
from smollm3.server.replies import json_reply
from smollm3.server.sampling_fields import MAX_INT, Label
from smollm3.server.sse import unless_gone

MAX_INPUTS = 2048


class EmbeddingRequest(Fields):
    """The request; `pooling` is an extension: the mean over the tokens, or the last token."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: Annotated[object, BeforeValidator(partial(read_texts_or_ids, limit=MAX_INPUTS))]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    pooling: Literal["mean", "last"] | None = None
    user: Label | None = None


async def embeddings(request: Request) -> Response:
    """Answer an HTTP request."""
    made = asyncio.ensure_future(create(context_of(request), await read_json(request)))
    try:
        return json_reply(await unless_gone(request.receive, made.cancel, made))
    except asyncio.CancelledError:
        if not made.cancelled() or (task := asyncio.current_task()) is None or task.cancelling():
            raise
        return Response(status_code=499)  # nobody is there to read it


async def create(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Return the embeddings that `body` asks for; raises what `errors.reply_to` can tell."""
    request = read(EmbeddingRequest, body)
    service = context.service
    check_model(service, request.model)
    _check_size(request, service.hidden_size)
    prompts = await asyncio.to_thread(_prompts, context, request)
    vectors = await service.embed(prompts, request.pooling or "mean")
    num_tokens = sum(map(len, prompts))
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": idx, "embedding": _encoded(vector, request.encoding_format)}
            for idx, vector in enumerate(vectors)
        ],
        "model": service.model_id,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _check_size(request: EmbeddingRequest, size: int) -> None:
    if request.dimensions not in (None, size):
        raise RequestError(
            f"dimensions: this model's embeddings have {size} numbers, none can be cut off: leave it out",
            param="dimensions",
        )


def _prompts(context: Context, request: EmbeddingRequest) -> list[list[int]]:
    assert isinstance(request.input, list)
    service = context.service
    prompts = []
    for idx, item in enumerate(request.input):
        field = "input" if len(request.input) == 1 else f"input[{idx}]"
        if isinstance(item, str):
            with blamed_on(field):
                # Content that others wrote: what it spells is text.
                item = service.tokenizer.encode_plain(item)
        elif max(item) >= service.vocab_size:
            raise RequestError(
                f"{field}: there is no token id {max(item)}: give ids 0 to {service.vocab_size - 1}",
                param=field,
            )
        if len(item) > service.context_size:
            raise RequestError(
                f"{field}: has {len(item)} tokens and the context {service.context_size}: shorten it",
                param=field,
                code="context_length_exceeded",
            )
        prompts.append(item)
    return prompts


def _encoded(vector: list[float], encoding: str | None) -> list[float] | str:
    if encoding != "base64":
        return vector
    return base64.b64encode(array("f", vector).tobytes()).decode("ascii")
