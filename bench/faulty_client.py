"""One faulty client: its own random numbers, its connections, and what it may be answered.

In: the seed, its number and its kind. Out: nothing, or a FaultError with what was sent.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from faulty_wire import FaultError, Reply, Target, Wire, check_error, events

OK_OR_REFUSED = (200, 400)


@dataclass
class Client:
    """`draw` belongs to this client alone: the same seed and number draw the same."""

    target: Target
    draw: random.Random
    number: int
    wires: list[Wire] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    async def open(self, receive_buffer: int | None = None) -> Wire:
        wire = await Wire.open(self.target, receive_buffer)
        self.wires.append(wire)
        return wire

    async def ask(self, data: bytes, *statuses: int, method: str = "GET", **allowed: bool) -> Reply | None:
        """Send a request on a connection of its own and check its reply's status."""
        wire = await self.open()
        try:
            await wire.send(data)
            reply = await wire.reply(method=method)
            self.expect(reply, *statuses, wire=wire, **allowed)
            return reply
        finally:
            wire.close()

    def expect(
        self,
        reply: Reply | None,
        *statuses: int,
        wire: Wire | None = None,
        closed: bool = False,
        cut: bool = False,
    ) -> None:
        """Raise FaultError unless the status is one of these and the reply whole, or missing if `closed`.

        A full house (429, 503) is never a fault where the house can be full.
        """
        crowded = self.target.crowded_since(self.began)
        if reply is None:
            if not (closed or crowded):
                raise FaultError("the connection was closed without a reply")
            return
        self.statuses.append(reply.status)
        if reply.cut and not (cut or crowded):
            raise FaultError(f"{reply.status}: the reply was cut off: {reply.body[-300:]!r}")
        if reply.status == 503 and not (crowded and b"connections are open" in reply.body):
            raise FaultError(f"503: {reply.body[:300]!r}")
        if reply.status == 429 and "retry-after" not in reply.headers:
            raise FaultError("429 without Retry-After")
        late = wire is not None and wire.sent_at - wire.opened_at > self.target.bounds.header_seconds / 2
        if reply.status not in (*statuses, 429, 503) and not (reply.status == 408 and late):
            raise FaultError(f"{reply.status} instead of {statuses}: {reply.body[:300]!r}")
        if not reply.cut:
            check_body(reply)

    def close(self) -> None:
        for wire in self.wires:
            wire.close()

    async def pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self.draw.uniform(least, most))

    def leave(self, wire: Wire) -> None:
        """Go, by FIN or by RST."""
        wire.reset() if self.draw.random() < 0.5 else wire.close()


def check_body(reply: Reply) -> None:
    """Raise FaultError unless the body is what its status and type say."""
    kind = reply.headers.get("content-type", "")
    if reply.status >= 400:
        check_error(reply)
    elif kind.startswith("text/event-stream"):
        for event in events(reply.body):
            error = event.get("error")
            if error and error["code"] != "form_failed":
                raise FaultError(f"an error in a stream: {error}")
    elif kind.startswith("application/json") and reply.body and reply.json is None:
        raise FaultError("an empty answer")


@dataclass(frozen=True)
class Kind:
    """What a faulty client does, and how often such a one comes."""

    run: Callable[[Client], Awaitable[Any]]
    weight: float = 1.0
