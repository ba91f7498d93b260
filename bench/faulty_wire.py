"""Raw connections to a server under test: bytes out as a client likes it, replies in read without mercy.

What comes back must be HTTP/1.1 to the letter (h11 reads it), else a FaultError. Knows no kind of client.
"""

import asyncio
import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import h11
from serve_client import Address

Headers = list[tuple[str, str]]
CROWD_SECONDS = 10.0
KEPT_BYTES = 4000  # of what was sent, for the report of a fault


class FaultError(Exception):
    """The server did what it must not do; the message says what."""


@dataclass(frozen=True)
class Bounds:
    """The limits that the server was started with."""

    requests: int = 12
    connections: int = 64
    body_bytes: int = 200_000
    header_bytes: int = 8192
    header_seconds: float = 2.5
    body_seconds: float = 3.0
    write_seconds: float = 2.0
    context: int = 1024


@dataclass
class Target:
    """The server under test, and how many connections all clients together have to it."""

    address: Address
    model: str
    keys: tuple[str, ...]
    pid: int
    bounds: Bounds = field(default_factory=Bounds)
    wait_seconds: float = 60.0  # for a reply that must come
    num_open: int = 0
    crowded_at: float = float("-inf")  # when there were last about as many connections as it takes

    def count(self, change: int) -> None:
        self.num_open += change
        if self.num_open > self.bounds.connections - 16:
            self.crowd()

    def crowd(self) -> None:
        """Note that there are, or were until now, more connections than `num_open` tells."""
        self.crowded_at = time.monotonic()

    def crowded_since(self, when: float) -> bool:
        """Whether the server may have found itself full; it sees late who has gone, on a busy machine."""
        return self.crowded_at >= when - CROWD_SECONDS


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False  # the connection ended before it

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise FaultError(f"the body is not JSON: {self.body[:300]!r}") from None


class Wire:
    """One connection."""

    def __init__(self, target: Target, sock: socket.socket) -> None:
        self._target = target
        self._sock = sock
        self._rest = b""
        self.sent = bytearray()
        self.num_sent = self.num_received = 0
        self.opened_at = self.sent_at = time.monotonic()
        self.was_reset = self.closed = False

    @classmethod
    async def open(cls, target: Target, receive_buffer: int | None = None) -> "Wire":
        sock = socket.socket()
        target.count(1)
        try:
            sock.setblocking(False)
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            address = (target.address.host, target.address.port)
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            target.count(-1)
            raise
        return cls(target, sock)

    async def send(self, data: bytes) -> None:
        """Send all of it; a server that has closed is found out by whoever reads."""
        self.sent += data[: max(0, KEPT_BYTES - len(self.sent))]
        self.num_sent += len(data)
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self._sock, data)
        self.sent_at = time.monotonic()

    async def trickle(self, data: bytes, size: int, pause: float) -> None:
        """Send pieces of `size` bytes with pauses, until the server closes or says something."""
        for start in range(0, len(data), size):
            await self.send(data[start : start + size])
            await asyncio.sleep(pause)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._sock.recv(1, socket.MSG_PEEK)
                return

    async def receive(self, size: int = 65536) -> bytes:
        """Return some bytes, none at the end."""
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, size)
        except ConnectionError:
            self.was_reset = True
            return b""
        self.num_received += len(data)
        return data

    async def reply(self, seconds: float | None = None, method: str = "GET") -> Reply | None:
        """Return the next reply, None if the connection ends before its first byte.

        Raises TimeoutError, or FaultError for what is no HTTP/1.1.
        """
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        reply: Reply | None = None
        began = False
        async with asyncio.timeout(seconds if seconds is not None else self._target.wait_seconds):
            while True:
                try:
                    event = parser.next_event()
                except h11.RemoteProtocolError as error:
                    return self._broken(reply, parser, error)
                if event is h11.NEED_DATA:
                    data = await self.receive()
                    if not data and not began:
                        return None
                    began = True
                    parser.receive_data(data)
                elif isinstance(event, h11.Response):
                    headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                    reply = Reply(event.status_code, headers, b"")
                elif isinstance(event, h11.Data) and reply is not None:
                    reply.body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self._rest = parser.trailing_data[0] + self._rest
                    return reply
                elif isinstance(event, h11.ConnectionClosed):
                    return None

    def _broken(self, reply: Reply | None, parser: h11.Connection, error: Exception) -> Reply | None:
        ended = parser.trailing_data[1] or self.was_reset
        if reply is not None and ended:
            reply.cut = True
            return reply
        if self.was_reset:
            return None
        raise FaultError(f"the reply is no HTTP/1.1: {error}; {parser.trailing_data[0][:200]!r}")

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave with RST instead of FIN."""
        if not self.closed:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._sock.close()
            self._target.count(-1)


def request(
    target: Target,
    path: str = "/v1/completions",
    body: bytes = b"",
    method: str = "POST",
    *,
    key: str | None = "",
    without: tuple[str, ...] = (),
    **more: str,
) -> bytes:
    """Return a request's bytes; `more` are headers (`_` is `-`), `without` those to leave out."""
    fields = {"Host": f"127.0.0.1:{target.address.port}", "Content-Type": "application/json"}
    if method != "GET" or body:
        fields["Content-Length"] = str(len(body))
    if key is not None:
        fields["Authorization"] = f"Bearer {key or target.keys[0]}"
    fields |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if name not in without)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogatepass") + body


def check_error(reply: Reply) -> None:
    """Raise FaultError unless this is OpenAI's error body, not large, that tells nothing of the inside."""
    error = reply.json.get("error") if isinstance(reply.json, dict) else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        raise FaultError(f"{reply.status} without OpenAI's error body: {reply.body[:300]!r}")
    if not isinstance(error["message"], str) or not error["message"] or not isinstance(error["type"], str):
        raise FaultError(f"an error without message or type: {reply.body[:300]!r}")
    if len(reply.body) > 16_000:
        raise FaultError(f"an error of {len(reply.body)} bytes: {reply.body[:300]!r}")
    if b"Traceback" in reply.body or b'File "' in reply.body:
        raise FaultError(f"an error that tells of the inside: {reply.body[:300]!r}")


def events(data: bytes) -> list[Any]:
    """Return the objects of a stream of server-sent events; FaultError for anything else in it."""
    found = []
    for line in data.decode("utf-8").split("\n"):
        if line.startswith("data: ") and line != "data: [DONE]":
            try:
                found.append(json.loads(line.removeprefix("data: ")))
            except ValueError:
                raise FaultError(f"an event that is no JSON: {line[:300]!r}") from None
        elif line and not line.startswith(("event: ", "data: ", ": ")):
            raise FaultError(f"a line that is no event: {line[:300]!r}")
    return found
