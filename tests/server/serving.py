"""A real server in a thread: uvicorn on 127.0.0.1 with a port of its own, over any application."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from starlette.types import ASGIApp

from smollm3.server.run import make_server
from smollm3.server.service import Service
from smollm3.server.settings import Limits


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`; `service` is what stands behind it."""

    url: str
    port: int
    service: Service

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)  # type: ignore[arg-type]


@contextmanager
def running(
    app: ASGIApp, service: Service, limits: Limits | None = None, send_buffer: int | None = None
) -> Iterator[Running]:
    """Serve `app` until the block ends; nothing of it is left then. `send_buffer`: the kernel's, in bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = make_server(app, limits or Limits())
    thread = threading.Thread(target=server.run, args=([listener],), name="test-server")
    thread.start()
    port = listener.getsockname()[1]
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server took too long to start"
            time.sleep(0.005)
        yield Running(f"http://127.0.0.1:{port}", port, service)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"
