"""What every request passes on its way in and out: a name, the guard, a place, and a line in the log.

Whatever goes wrong behind it becomes OpenAI's error body here, and in one place only.
"""

import logging
import re
import time
from collections.abc import Mapping
from uuid import uuid4

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smollm3.server.context import Context
from smollm3.server.errors import EngineDeadError, FramingError, QueueFullError, ShuttingDownError, reply_to
from smollm3.server.guard import Guard
from smollm3.server.log import note
from smollm3.server.metrics import Metrics
from smollm3.server.notes import NOTES, Notes
from smollm3.server.replies import dumps
from smollm3.server.responses_store import ResponseStore
from smollm3.server.service import Service
from smollm3.server.settings import Limits

log = logging.getLogger(__name__)
CLIENT_GONE = 499  # logged where a client left before its reply began
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
RawHeaders = list[tuple[bytes, bytes]]


class Front:
    """The outermost part of the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: Service,
        guard: Guard,
        limits: Limits,
        metrics: Metrics,
        routes: Mapping[object, str],
    ) -> None:
        """`routes` names an endpoint's path in the route table."""
        self._app = app
        self._service = service
        self._guard = guard
        self._limits = limits
        self._metrics = metrics
        self._routes = routes
        self._created = int(time.time())
        self._responses = ResponseStore()
        self._num_posted = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the lifespan goes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        exchange = _Exchange(send, _request_id(headers), self._guard.cors_headers(headers))
        token = NOTES.set(exchange.notes)
        self._metrics.num_open += 1
        posted = scope["method"] == "POST"
        self._num_posted += posted
        try:
            await self._answer(scope, headers, receive, exchange)
        except ClientDisconnect:
            pass
        except Exception as error:
            await self._fail(exchange, error)
        finally:
            self._num_posted -= posted
            self._metrics.num_open -= 1
            NOTES.reset(token)
            self._note(scope, exchange)

    async def _answer(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, exchange: "_Exchange"
    ) -> None:
        allowed = self._guard.preflight(scope, headers)
        if allowed is not None:
            exchange.extra = allowed
            await exchange.reply(204, b"")
            return
        salt = self._guard.check(scope, headers)
        if scope["method"] == "POST":
            self._admit()
        scope["smollm3.context"] = Context(
            self._service,
            exchange.request_id,
            salt,
            self._created,
            self._responses,
            self._guard.owner(headers),
        )
        await self._app(scope, self._limited(receive), exchange.send)

    def _admit(self) -> None:
        """Refuse work before its body is read when there is no place for it."""
        if self._service.state == "dead":
            raise EngineDeadError("the engine has failed: the server must be started again")
        if self._service.state != "ready":
            raise ShuttingDownError("the server is shutting down: ask another, or later", retry_after=5)
        if self._num_posted > self._limits.max_requests:
            raise QueueFullError(
                f"{self._limits.max_requests} requests are in work: try again in a moment", retry_after=1
            )

    def _limited(self, receive: Receive) -> Receive:
        """Count the body as it comes: its length need not be declared."""
        size = 0

        async def receive_limited() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self._limits.max_body_bytes:
                    raise self._guard.too_large()
            return message

        return receive_limited

    async def _fail(self, exchange: "_Exchange", error: Exception) -> None:
        reply = reply_to(error)
        exchange.notes.error = str(reply.error["code"] or reply.error["type"])
        if reply.status >= 500:
            log.error("request %s failed", exchange.request_id, exc_info=error)
        if exchange.status is not None:
            raise error  # the reply has begun: the connection is closed, so that nobody takes it for whole
        exchange.extra += [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
        if isinstance(error, FramingError):
            exchange.extra.append((b"connection", b"close"))
        await exchange.reply(reply.status, dumps(reply.body))

    def _note(self, scope: Scope, exchange: "_Exchange") -> None:
        seconds = time.perf_counter() - exchange.began
        status = exchange.status if exchange.status is not None else CLIENT_GONE
        route = self._routes.get(scope.get("endpoint"), "other")
        self._metrics.requested(route, status, seconds)
        notes = exchange.notes
        if notes.error is not None:
            self._metrics.failed(notes.error)
        note(
            log,
            "request",
            request_id=exchange.request_id,
            client=(scope.get("client") or ("",))[0],
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            seconds=round(seconds, 4),
            first_byte_seconds=exchange.first_byte_seconds,
            prompt_tokens=notes.num_prompt or None,
            reused_tokens=notes.num_reused or None,
            generated_tokens=notes.num_generated or None,
            error=notes.error,
        )


class _Exchange:
    """One reply on its way out."""

    def __init__(self, send: Send, request_id: str, extra: RawHeaders) -> None:
        self._send = send
        self.request_id = request_id
        self.extra = list(extra)
        self.notes = Notes()
        self.began = time.perf_counter()
        self.status: int | None = None
        self.first_byte_seconds: float | None = None

    async def send(self, message: Message) -> None:
        """Send a part of the reply; its first gets the headers that every reply has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.first_byte_seconds = round(time.perf_counter() - self.began, 4)
            name = (b"x-request-id", self.request_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), name, *self.extra]}
        await self._send(message)

    async def reply(self, status: int, body: bytes) -> None:
        """Send a whole JSON reply."""
        headers = [(b"content-length", str(len(body)).encode())]
        if body:
            headers.append((b"content-type", b"application/json"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """Return the request's own id if it is a plain word, else a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"req-{uuid4().hex}"
