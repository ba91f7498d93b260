"""Runs the application at a socket until a signal: drains for a bounded time, or aborts at a second one.

In: an ASGI application over a Service, a bound socket, limits. Out: an exit code. No other port is opened and
no process started.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from smollm3.errors import ParameterError
from smollm3.server.log import note
from smollm3.server.protocol import GuardedProtocol
from smollm3.server.service import Service
from smollm3.server.settings import Limits

log = logging.getLogger(__name__)
SWITCH_SECONDS = 0.001
SIGNALS = (signal.SIGINT, signal.SIGTERM)
DRAINED, CUT_OFF, FAILED = 0, 1, 1


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; nothing listens yet. Raises ParameterError in one line."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ParameterError(f"--host {host!r}: no such address here; give 127.0.0.1") from error
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ParameterError(
            f"cannot serve at {host}:{port} ({reason}): give another --port or --host"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address as clients write it."""
    host, port = listener.getsockname()[:2]
    return url_at(host, port)


def url_at(host: str, port: int) -> str:
    """Return where a client on this machine finds a server that listens at `host`."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def make_server(app: ASGIApp, limits: Limits) -> "Server":
    """Return uvicorn around the application, with our protocol."""
    protocol = partial(GuardedProtocol, limits)
    config = uvicorn.Config(
        app,
        http=cast(Any, protocol),
        ws="none",
        loop="asyncio",
        lifespan="on",
        interface="asgi3",
        workers=1,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=cast(int, limits.idle_seconds),
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=limits.max_header_bytes,
        backlog=min(limits.max_connections, 2048),
    )
    return Server(config)


class Server(uvicorn.Server):
    """uvicorn's server; signals are `serve`'s."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def serve(
    app: ASGIApp,
    service: Service,
    listener: socket.socket,
    limits: Limits,
    on_ready: Callable[[], None],
) -> int:
    """Serve until SIGTERM or SIGINT; return 0 if every request was finished, 1 if some were cut off."""
    return asyncio.run(_serve(make_server(app, limits), service, listener, limits, on_ready))


async def _serve(
    server: Server,
    service: Service,
    listener: socket.socket,
    limits: Limits,
    on_ready: Callable[[], None],
) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, _on_signal, number, stop)
    # The engine's thread computes without Python's lock; while it holds it, the loop must not wait 5 ms.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        if not await _started(server, running):
            return FAILED
        # What the model is made of never dies: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        on_ready()
        await stop.wait()
        code = await drain(service, limits.drain_seconds)
        server.should_exit = True
        await running
        return code
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        sys.setswitchinterval(interval)
        await service.close()


async def _started(server: Server, running: "asyncio.Task[None]") -> bool:
    while not server.started and not running.done():
        await asyncio.sleep(0.002)
    return server.started


async def drain(service: Service, seconds: float) -> int:
    """Take nothing new and wait for the requests that are there; give up those that take too long."""
    service.drain()
    note(log, "draining", requests=service.num_active, seconds=seconds)
    try:
        await asyncio.wait_for(service.drained(), seconds)
    except TimeoutError:
        note(log, "cut off", requests=service.num_active)
        await service.close()
        return CUT_OFF
    return DRAINED


def _on_signal(number: int, stop: asyncio.Event) -> None:
    if not stop.is_set():
        stop.set()
        return
    note(log, "aborted by a second signal")
    for handler in logging.getLogger("smollm3").handlers:
        handler.flush()
    # The engine's thread may be deep in a step: nothing waits for it.
    os._exit(128 + number)
