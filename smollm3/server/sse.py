"""Answers over HTTP: an iterator of bytes as server-sent events, or one value as JSON.

In both the request is given up as soon as the client leaves. Knows no schema and no model.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from smollm3.server.errors import reply_to
from smollm3.server.replies import dumps

log = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Result = TypeVar("Result")


def frame(item: Any) -> bytes:
    """Return an item as one event; JSON holds no line break, so one line of data is enough."""
    return b"data: " + dumps(item) + b"\n\n"


def error_body(error: Exception) -> dict[str, Any]:
    """Return what a client is told about an error after its answer has begun; logs what is not its fault."""
    reply = reply_to(error)
    if reply.status >= 500:
        log.error("a request failed while it was answered", exc_info=error)
    return reply.body


async def chat_frames(items: AsyncIterator[Any]) -> AsyncGenerator[bytes, None]:
    """Yield a frame per item, an error as a frame of its own, and `[DONE]`."""
    try:
        async for item in items:
            yield frame(item)
    except Exception as error:
        yield frame(error_body(error))
    yield DONE


class EventStream(Response):
    """Sends frames as they come; `close` gives up the work behind them, whatever ends the response."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], close: Callable[[], None]) -> None:
        super().__init__(None, 200, _HEADERS)
        del self.headers["content-length"]
        self._frames = frames
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(_close_when_gone(receive, self._close))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._frames) as frames:
                async for data in frames:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watcher.cancel()
            self._close()


async def unless_gone(receive: Receive, close: Callable[[], object], result: Awaitable[Result]) -> Result:
    """Await a result; when the client leaves meanwhile, `close` is called."""
    watcher = asyncio.create_task(_close_when_gone(receive, close))
    try:
        return await result
    finally:
        watcher.cancel()
        close()


async def _close_when_gone(receive: Receive, close: Callable[[], object]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    close()
