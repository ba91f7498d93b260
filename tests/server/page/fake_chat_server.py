"""A server with OpenAI's chat interface that says what a test tells it to, on a free port of this machine."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from smollm3.server.page.files import page_routes


@dataclass(frozen=True)
class Think:
    text: str


@dataclass(frozen=True)
class Call:
    """A piece of a tool call: the name and id come with the first piece."""

    index: int
    arguments: str
    name: str | None = None


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Raw:
    """Bytes of the stream as they are."""

    data: bytes


@dataclass(frozen=True)
class Fail:
    """Not a stream: a status with OpenAI's error body, or with a body of any other kind."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None


@dataclass(frozen=True)
class Finish:
    reason: str = "stop"
    usage: bool = True
    done: bool = True


Step = str | Think | Call | Pause | Raw | Fail | Finish | threading.Event


class FakeChatServer:
    """Each request takes the next script; without one it gets a short greeting."""

    def __init__(self) -> None:
        self.scripts: list[tuple[Step, ...]] = []
        self.requests: list[dict[str, Any]] = []
        self.model: dict[str, Any] = {"id": "smollm3-3b", "object": "model", "thinking": True}
        self.key: str | None = None
        self.left = threading.Event()
        self._socket = _listen(0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.start()

    def answer(self, *steps: Step) -> None:
        """Queue what the next request gets; a Finish is added where the script has none."""
        ends = steps and isinstance(steps[-1], Finish | Fail | Raw)
        self.scripts.append(steps if ends else (*steps, Finish()))

    def start(self) -> None:
        config = uvicorn.Config(self._app(), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def stop(self) -> None:
        """Go away: the port refuses from now on."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    def restart(self) -> None:
        self._socket = _listen(self.port)
        self.start()

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                *page_routes(),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return _error(Fail(401, "Incorrect API key provided."))

    async def _models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"object": "list", "data": [self.model]})

    async def _chat(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        self.requests.append(await request.json())
        script = self.scripts.pop(0) if self.scripts else ("Hello!", Finish())
        if isinstance(script[0], Fail):
            return _error(script[0])
        return StreamingResponse(self._stream(script), media_type="text/event-stream")

    async def _stream(self, script: tuple[Step, ...]) -> AsyncIterator[bytes]:
        yield _chunk({"role": "assistant", "content": ""})
        complete = False
        try:
            for step in script:
                if isinstance(step, threading.Event):
                    while not step.is_set():
                        await asyncio.sleep(0.005)
                elif isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    for data in _frames(step):
                        yield data
            complete = True
        finally:
            if not complete:
                self.left.set()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def _error(fail: Fail) -> Response:
    if fail.body is not None:
        return Response(fail.body, fail.status, fail.headers)
    error = {"message": fail.message, "type": "error", "param": None, "code": None}
    return JSONResponse({"error": error}, fail.status, fail.headers)


def _frames(step: Step) -> list[bytes]:
    match step:
        case str():
            return [_chunk({"content": step})]
        case Think(text):
            return [_chunk({"reasoning_content": text})]
        case Call(index, arguments, name):
            call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
            if name:
                call |= {"id": f"call_{name}_{index}", "type": "function"}
                call["function"]["name"] = name
            return [_chunk({"tool_calls": [call]})]
        case Raw(data):
            return [data]
        case Finish(reason, usage, done):
            frames = [_chunk({}, finish_reason=reason)]
            if usage:
                counts = {"prompt_tokens": 20, "completion_tokens": 12, "total_tokens": 32}
                counts["prompt_tokens_details"] = {"cached_tokens": 16}  # type: ignore[assignment]
                frames.append(_sse({"model": "smollm3-3b", "choices": [], "usage": counts}))
            return [*frames, *([b"data: [DONE]\n\n"] if done else [])]
    raise AssertionError(step)


def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _sse({"object": "chat.completion.chunk", "model": "smollm3-3b", "choices": [choice]})


def _sse(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
