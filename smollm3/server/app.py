"""The server's application: the route table, and what every request passes before and after its endpoint.

In: a Service. Out: an ASGI application, whose lifespan starts and closes the service.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from smollm3.errors import SmolLM3Error
from smollm3.server.chat import chat_completions
from smollm3.server.completions import completions
from smollm3.server.context import Context
from smollm3.server.embeddings import embeddings
from smollm3.server.models import health, list_models, retrieve_model
from smollm3.server.replies import as_request_error, error_reply
from smollm3.server.responses import delete_response, responses, retrieve_response
from smollm3.server.responses_store import ResponseStore
from smollm3.server.service import Service

log = logging.getLogger(__name__)


def routes() -> list[BaseRoute]:
    """Return the route table."""
    return [
        Route("/health", health, methods=["GET"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/responses/{response_id}", retrieve_response, methods=["GET"]),
        Route("/v1/responses/{response_id}", delete_response, methods=["DELETE"]),
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{model:path}", retrieve_model, methods=["GET"]),
    ]


def build_app(service: Service) -> Starlette:
    """Return the application that serves `service`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service:
            yield

    return Starlette(
        routes=routes(),
        middleware=[Middleware(_Outer, service=service)],
        exception_handlers={HTTPException: _http_error, SmolLM3Error: _own_error},
        lifespan=lifespan,
    )


class _Outer:
    """Gives a request its context, and a failed one its 500."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._created = int(time.time())
        self._responses = ResponseStore()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["smollm3.context"] = Context(
                self._service, f"req-{uuid4().hex}", created=self._created, responses=self._responses
            )
        await self._app(scope, receive, send)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_reply(as_request_error(error, request))


async def _own_error(request: Request, error: Exception) -> Response:
    return error_reply(error)
