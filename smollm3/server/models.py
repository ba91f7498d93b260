"""/health and /v1/models: whether the server answers, and as what."""

from starlette.requests import Request
from starlette.responses import Response

from smollm3.server.chat_prompt import can_think
from smollm3.server.context import Context, context_of
from smollm3.server.errors import NotFoundError
from smollm3.server.replies import json_reply

_HEALTH = {"ready": "ok", "draining": "draining", "dead": "dead"}


async def health(request: Request) -> Response:
    """200 while requests are taken; 503 while draining, after the engine's death and before the start."""
    state = context_of(request).service.state
    return json_reply({"status": _HEALTH.get(state, "down")}, 200 if state == "ready" else 503)


async def list_models(request: Request) -> Response:
    """Return the one model that is served."""
    return json_reply({"object": "list", "data": [_model(context_of(request))]})


async def retrieve_model(request: Request) -> Response:
    """Return the model if its name is the one that is served."""
    context, name = context_of(request), request.path_params["model"]
    if name != context.service.model_id:
        raise NotFoundError(
            f"no model {name!r} here: this server has {context.service.model_id!r}",
            param="model",
            code="model_not_found",
        )
    return json_reply(_model(context))


def _model(context: Context) -> dict[str, object]:
    service = context.service
    return {
        "id": service.model_id,
        "object": "model",
        "created": context.created,
        "owned_by": "smollm3",
        "max_model_len": service.context_size,
        "thinking": can_think(service.tokenizer),
    }
