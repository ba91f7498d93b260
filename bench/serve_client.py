"""A client of OpenAI's interface that costs little: it shares the machine with the server that it loads.

In: an address, a route and a body. Out: an Answer with its text, its counts and the times of its pieces. One
connection per request; nothing beyond the standard library.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]
CONNECT_S, ANSWER_S = 10.0, 3600.0


@dataclass
class Answer:
    """What came back; seconds count from the moment at which the request was sent.

    first_s: to the first token (of its text, where a chat has to begin with a role).
    """

    text: str = ""
    finish_reason: str | None = None
    num_prompt: int = 0
    num_new: int = 0
    first_s: float | None = None
    total_s: float = 0.0
    error: str | None = None
    stamps: list[float] = field(default_factory=list, repr=False)

    @property
    def same_as(self) -> tuple[str, str | None, int]:
        """What must be equal for two answers to be the same."""
        return self.text, self.finish_reason, self.num_new


@dataclass(frozen=True)
class Address:
    host: str
    port: int


async def ask(address: Address, route: str, body: Body) -> Answer:
    """Send a request, stream its answer; a failure of any kind is `error` of the answer."""
    answer = Answer()
    begin = time.perf_counter()
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with asyncio.timeout(ANSWER_S):
            async for event in _events(address, route, body):
                _take(answer, event, time.perf_counter() - begin)
    except (OSError, ValueError, EOFError, TimeoutError) as error:
        answer.error = answer.error or f"{type(error).__name__}: {error}"
    answer.total_s = time.perf_counter() - begin
    if answer.error is None and answer.finish_reason is None:
        answer.error = "the stream ended without a finish_reason"
    return answer


def _take(answer: Answer, event: Body, now: float) -> None:
    if "error" in event:
        answer.error = json.dumps(event["error"])
        return
    for choice in event.get("choices", []):
        delta = choice.get("delta")
        piece = choice.get("text") if delta is None else _delta_text(delta)
        if delta is None or piece:
            answer.first_s = now if answer.first_s is None else answer.first_s
            answer.stamps.append(now)
        answer.text += piece or ""
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    if usage := event.get("usage"):
        answer.num_prompt, answer.num_new = usage["prompt_tokens"], usage["completion_tokens"]


def _delta_text(delta: Body) -> str:
    return (delta.get("reasoning_content") or "") + (delta.get("content") or "")


async def _events(address: Address, route: str, body: Body) -> AsyncIterator[Body]:
    """Yield the objects of a stream of server-sent events; ValueError for any other answer."""
    text = json.dumps(body).encode()
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await asyncio.open_connection(address.host, address.port)
    head = (
        f"POST {route} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + text)
        await writer.drain()
        status, chunked = await _head(reader)
        if status != 200:
            raise ValueError(f"HTTP {status}: {(await reader.read(2000)).decode(errors='replace')}")
        rest = b""
        async for piece in _pieces(reader, chunked):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                    yield json.loads(data)
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    return int(lines[0].split()[1]), any(
        line.startswith("transfer-encoding:") and "chunked" in line for line in lines
    )


async def _pieces(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    while not chunked:
        piece = await reader.read(65536)
        if not piece:
            return
        yield piece
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:size]


async def get(address: Address, route: str) -> tuple[int, str]:
    """Return status and text of a GET."""
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            host = f"Host: {address.host}:{address.port}\r\nConnection: close\r\n\r\n"
            writer.write(f"GET {route} HTTP/1.1\r\n{host}".encode())
            status, chunked = await _head(reader)
            return status, b"".join([piece async for piece in _pieces(reader, chunked)]).decode()
        finally:
            writer.close()


async def metrics(address: Address) -> dict[str, float]:
    """Return /metrics by name, the samples of one name added up; empty where there is none."""
    status, text = await get(address, "/metrics")
    found: dict[str, float] = {}
    for line in text.splitlines() if status == 200 else ():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            bare = name.partition("{")[0]
            found[bare] = found.get(bare, 0.0) + float(value)
    return found
