"""The server's application: the route table, and what every request passes before and after its endpoint.

In: a Service and who may use it how. Out: an ASGI application, whose lifespan starts and closes the service.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from smollm3.server.chat import chat_completions
from smollm3.server.completions import completions
from smollm3.server.context import context_of
from smollm3.server.embeddings import embeddings
from smollm3.server.errors import EngineDeadError, ShuttingDownError
from smollm3.server.front import Front
from smollm3.server.guard import Guard
from smollm3.server.metrics import CONTENT_TYPE, Metrics
from smollm3.server.models import health, list_models, retrieve_model
from smollm3.server.page.files import page_paths, page_routes
from smollm3.server.replies import as_request_error
from smollm3.server.responses import delete_response, responses, retrieve_response
from smollm3.server.service import Service
from smollm3.server.settings import Access, Limits
from smollm3.server.tokens import detokenize, tokenize


def routes() -> list[Route]:
    """Return the route table, without the chat page."""
    return [
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/responses/{response_id}", retrieve_response, methods=["GET"]),
        Route("/v1/responses/{response_id}", delete_response, methods=["DELETE"]),
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{model:path}", retrieve_model, methods=["GET"]),
    ]


def build_app(
    service: Service,
    *,
    access: Access | None = None,
    limits: Limits | None = None,
    ui: bool = False,
    replica: str = "",
    more_routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """Return the application that serves `service`; by default everybody is let in.

    `ui` adds the chat page, whose files need no API key. `replica` names this server
    among others in its metrics. `more_routes` come last.
    """
    access, limits = access or Access(), limits or Limits()
    counts = Metrics(replica)
    service.on_answered = counts.answered
    table = [*routes(), *(page_routes() if ui else ())]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service:
            yield

    app = Starlette(
        routes=[*table, *more_routes],
        middleware=[
            Middleware(
                Front,
                service=service,
                guard=Guard(access, limits, page_paths() if ui else ()),
                limits=limits,
                metrics=counts,
                routes={route.endpoint: route.path for route in table},
            )
        ],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a path is the one in the table, or none
    app.state.metrics = counts
    return app


async def metrics(request: Request) -> Response:
    """Return the server's counts in Prometheus' text format."""
    service, counts = context_of(request).service, request.app.state.metrics
    try:
        stats = await service.stats()
    except (EngineDeadError, ShuttingDownError):
        stats = None
    text = counts.text(up=service.state == "ready", num_active=service.num_active, stats=stats)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


async def _http_error(request: Request, error: Exception) -> Response:
    """Hand starlette's own errors to the front, which answers all others too."""
    assert isinstance(error, HTTPException)
    raise as_request_error(error, request)
