"""One replica: the server's application in a process of Ray's, behind Ray's HTTP proxy.

In: a recipe, which loads the model where the replica runs. Out: the application, whose lifespan Ray runs, its
health for Ray, and a line about what was loaded.
"""

import asyncio
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smollm3.errors import SmolLM3Error
from smollm3.server.run import SWITCH_SECONDS, drain
from smollm3.server.service import Service

REFUSED = "smollm3 cannot serve: "  # before what a user can mend, so that it is found in Ray's traceback


@dataclass(frozen=True)
class Served:
    """What a replica runs; `facts` says in words what was loaded."""

    service: Service
    app: ASGIApp
    facts: str


Recipe = Callable[[str], Served]  # from the replica's name


@serve.ingress()
class Replica:
    """A model that is served; Ray calls the methods."""

    def __init__(self, recipe: Recipe) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        self._draining: asyncio.Task[int] | None = None
        try:
            self._served = recipe(self._name)
        except SmolLM3Error as error:
            raise RuntimeError(f"{REFUSED}{error}") from None
        # As in the server's own process (server/run.py): short turns beside the engine, and a model for good.
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return WithoutRequestId(self._served.app)

    async def check_health(self) -> None:
        """Raise once the engine has died: Ray then starts another replica."""
        if self._served.service.state == "dead":
            raise RuntimeError("the engine has failed")

    async def facts(self) -> str:
        """Return what was loaded, in words."""
        return self._served.facts

    async def drain(self, seconds: float) -> tuple[str, int | None]:
        """Take nothing new from now on; return the replica's name, and once all has ended its exit code."""
        if self._draining is None:
            self._draining = asyncio.create_task(drain(self._served.service, seconds))
        return self._name, self._draining.result() if self._draining.done() else None


class WithoutRequestId:
    """Leaves X-Request-Id out of replies: Ray's proxy adds it to each, and it must not come twice."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_without)
