"""What an endpoint knows besides its body: the service, whose request it is, and since when the server runs.

An offline batch makes its own; over HTTP `context_of` takes it from the request. Endpoints keep nothing else.
"""

from dataclasses import dataclass, field

from starlette.requests import Request

from smollm3.server.responses_store import ResponseStore
from smollm3.server.service import Service


@dataclass(frozen=True, slots=True)
class Context:
    """What `create(context, body)` gets.

    request_id: names the request in logs, ids and errors. salt: for `Work.salt`; "" shares prompts' pasts
    with everybody. created: when the model was loaded, seconds since 1970. responses: those that are kept,
    each for its `owner`, who is one API key's holder, or "" where there are no keys.
    """

    service: Service
    request_id: str
    salt: str = ""
    created: int = 0
    responses: ResponseStore = field(default_factory=ResponseStore)
    owner: str = ""

    def salted(self, more: str | None) -> str:
        """Return the salt of a request that brings one of its own."""
        return self.salt if more is None else f"{self.salt}\0{more}"


def context_of(request: Request) -> Context:
    """Return the context that the guards have put into the request."""
    context = request.scope["smollm3.context"]
    assert isinstance(context, Context)
    return context
