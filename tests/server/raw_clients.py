"""Clients that keep no manners: raw sockets that send and read as they are told."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def connected(port: int, seconds: float = 10) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        yield connection


def request(method: str = "POST", path: str = "/v1/completions", body: bytes = b"", **headers: str) -> bytes:
    fields = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def completion(**fields: Any) -> bytes:
    return request(body=json.dumps({"model": "tiny", "prompt": "The", **fields}).encode())


def endless(**fields: Any) -> bytes:
    """A request whose answer does not end by itself: the id that would end it is forbidden."""
    return completion(**{"max_tokens": 30_000, "logit_bias": {"3": -100}, "stream": True, **fields})


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes, or resets."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            data += piece
    return data


def exchange(port: int, data: bytes, seconds: float = 10) -> tuple[int, dict[str, Any]]:
    """Send bytes on a new connection; return the first reply's status and JSON body."""
    with connected(port, seconds) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        return parse(read_reply(connection))


def read_reply(connection: socket.socket) -> bytes:
    """Read one reply with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        assert piece, f"the connection ended after {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def parse(reply: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else {}


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
