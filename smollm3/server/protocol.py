"""uvicorn's HTTP/1.1 protocol with what it lacks: deadlines, true statuses, and an end for whoever left.

A connection has a deadline for its headers, one for its body and one for a reader that takes nothing; broken
framing is a 400 and too large a header a 431, both as JSON; the application's task ends with its client.
"""

import asyncio
import logging
import socket
import sys
from typing import Any

import h11
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from smollm3.server.errors import RequestError, reply_to
from smollm3.server.log import note
from smollm3.server.replies import dumps
from smollm3.server.settings import Limits

log = logging.getLogger(__name__)
WRITE_BUFFER_BYTES = 64 * 1024
LINGER_SECONDS = 2.0  # that a refused client may still send, so that it reads the reply
MAX_DISCARDED = 16 * 1024 * 1024  # bytes that are read of what nobody wants


class GuardedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, limits: Limits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._inner = self.app
        self.app = self._run
        self._task: asyncio.Task[Any] | None = None
        self._waits_for = ""  # what the read timer is for: "headers", "body", "rest" of what is refused
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._last_timer: asyncio.TimerHandle | None = None  # for the last bytes of a reply
        self._ended = False  # the client left, or was refused
        self._num_discarded = 0

    # The connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does so only for sockets made with a protocol number: without it, the second of two small
        # writes, such as a reply's body, waits up to 40 ms for an acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if len(self.connections) > self._limits.max_connections:
            limit = self._limits.max_connections
            self._refuse(RequestError(f"{limit} connections are open: come back later", status=503))
            transport.close()
            return
        self._wait_for("headers")

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._wait_for("")
        self.resume_writing()
        if self._last_timer is not None:
            self._last_timer.cancel()
        super().connection_lost(exc)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            self._discard(data)
            return
        if self._waits_for == "":
            self._wait_for("headers")
        super().data_received(data)
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reading()
        if self._last_timer is None:
            self._watch_last_bytes()

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the application; a task that ends because its client did is no error."""
        self._task = asyncio.current_task()
        body_to_come = False

        async def send_or_end(message: Any) -> None:
            nonlocal body_to_come
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_last and self.conn.their_state is h11.SEND_BODY:
                body_to_come, message = True, {**message, "more_body": True}
            await send(message)
            if self._ended:  # uvicorn drops what is sent now; a stream that never waits would go on for ever
                raise ClientDisconnect

        try:
            await self._inner(scope, receive, send_or_end)
            if body_to_come:
                await self._read_rest(receive)
                await send({"type": "http.response.body"})
        except (asyncio.CancelledError, ClientDisconnect):
            if not self._ended:
                raise
        finally:
            self._task = None

    async def _read_rest(self, receive: Any) -> None:
        """Read a body that its reply did not wait for: the next request, or the closing, comes after it."""
        self._num_discarded, more_body = 0, True
        while more_body:
            message = await receive()
            self._discard(message.get("body", b""))
            more_body = message.get("more_body", False)

    # Deadlines

    def _watch_reading(self) -> None:
        """Set the deadline for what is to be read next."""
        if self._ended or self.transport.is_closing():
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._wait_for("body")
        elif state is not h11.IDLE:
            self._wait_for("")
        elif self.timeout_keep_alive_task is not None:
            # Between requests uvicorn's own timer runs, unless the next one's beginning came with the last.
            self._wait_for("headers" if self.conn.trailing_data[0] else "")

    def _wait_for(self, what: str) -> None:
        if what == self._waits_for:
            return
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        self._waits_for = what
        if what:
            limits = self._limits
            seconds = {"headers": limits.header_seconds, "body": limits.body_seconds}.get(
                what, LINGER_SECONDS
            )
            self._read_timer = self.loop.call_later(seconds, self._read_timed_out)

    def _read_timed_out(self) -> None:
        what, self._waits_for = self._waits_for, ""
        if what == "rest":
            self.transport.abort()
        elif what == "headers" and not self.conn.trailing_data[0]:
            self.transport.close()  # opened and never used, as browsers do
        else:
            why = f"the {what} did not come in time: send faster"
            self._refuse(RequestError(why, status=408, code="timeout"))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_seconds, self._write_timed_out)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_last_bytes(self, before: int | None = None) -> None:
        """Drop a reader that takes nothing of a reply's end, which is too little to pause the writing."""
        self._last_timer = None
        size = self.transport.get_write_buffer_size()
        if size and size == before:
            self._write_timed_out()
        elif size:
            seconds = self._limits.write_seconds
            self._last_timer = self.loop.call_later(seconds, self._watch_last_bytes, size)

    def _write_timed_out(self) -> None:
        note(log, "a client that stopped reading was dropped", client=(self.client or ("",))[0])
        self.transport.abort()

    # Refusals

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 could not read: uvicorn calls this while it handles h11's exception."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        if status == 431:
            limit = self._limits.max_header_bytes
            self._refuse(RequestError(f"the headers are over {limit} bytes: send less", status=431))
        else:
            self._refuse(RequestError(f"this is no proper HTTP/1.1: {error}", status=status))

    def _refuse(self, error: RequestError) -> None:
        """Reply if a reply can still be begun, give the request up, and close once the client has read it."""
        self._ended = True
        cycle = self.cycle
        pending = cycle is not None and not cycle.response_complete
        if pending:
            cycle.disconnected = True
        note(
            log,
            "a connection was refused",
            client=(self.client or ("",))[0],
            status=error.status,
            error=str(error)[:200],
        )
        if pending and self._task is not None:
            self._task.cancel()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        self._write_reply(error)
        # Closing at once would reset the connection, and the reply be lost, while the client still sends.
        try:
            self.transport.write_eof()
        except OSError:  # it has gone since
            self.transport.abort()
            return
        self.flow.resume_reading()
        self._wait_for("rest")

    def _discard(self, data: bytes) -> None:
        self._num_discarded += len(data)
        if self._num_discarded > MAX_DISCARDED:
            self.transport.abort()

    def _write_reply(self, error: RequestError) -> None:
        reply = reply_to(error)
        body = dumps(reply.body)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        reason = STATUS_PHRASES[reply.status]
        response = h11.Response(status_code=reply.status, headers=headers, reason=reason)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
