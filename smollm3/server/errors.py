"""What goes wrong with a request, as a status and OpenAI's error body; any exception has one.

Knows no HTTP library: `ErrorReply` is numbers and plain data. What is not the client's to mend says
nothing of the inside.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smollm3.errors import (
    ContextOverflowError,
    MissingDependencyError,
    ParameterError,
    PromptError,
    SmolLM3Error,
    TemplateError,
)


class RequestError(SmolLM3Error):
    """A request that is refused or fails, with what its client is told.

    `param` names the field, `code` is OpenAI's word for the cause, `retry_after` is in seconds.
    """

    status = 400
    type = "invalid_request_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code if code is not None else self.code
        self.status = status if status is not None else self.status
        self.retry_after = retry_after


class AuthenticationError(RequestError):
    """No API key, or one that is not known."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class ForbiddenError(RequestError):
    """A Host or an Origin that is not let in."""

    status, type = 403, "permission_error"


class NotFoundError(RequestError):
    """A path, or a model, that is not here."""

    status, type, code = 404, "not_found_error", "not_found"


class BodyTooLargeError(RequestError):
    """A body over the limit."""

    status, code = 413, "request_too_large"


class FramingError(RequestError):
    """A request whose end can be read in two ways: nothing after it can be believed."""


class QueueFullError(RequestError):
    """As many requests as the server takes are in it already."""

    status, type, code = 429, "rate_limit_error", "too_many_requests"


class UnavailableError(RequestError):
    """The server cannot work on anything now."""

    status, type = 503, "service_unavailable_error"


class ShuttingDownError(UnavailableError):
    """The server finishes what it has and takes nothing new."""

    code = "shutting_down"


class EngineDeadError(UnavailableError):
    """The engine has failed for good."""

    code = "engine_dead"


class SlowClientError(RequestError):
    """The client reads its answer too slowly, or sends its request so."""

    status, code = 408, "request_timeout"


class GenerationError(RequestError):
    """One request's own failure while it ran."""

    status, type, code = 500, "server_error", "generation_failed"


class FormError(RequestError):
    """The form that a request asks for turned out, on the way, to be one that cannot be followed."""

    code = "form_failed"


@dataclass(frozen=True)
class ErrorReply:
    """A status, headers, and the object that goes under "error"."""

    status: int
    error: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        return {"error": dict(self.error)}


MAX_MESSAGE, MAX_PARAM = 2000, 200  # characters: what a client sent does not all come back
_CLIENTS = (ParameterError, PromptError, TemplateError)  # what a request can cause and mend


def reply_to(error: BaseException) -> ErrorReply:
    """Return what the client is told about an exception."""
    if isinstance(error, RequestError):
        retry = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        bearer = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return _reply(error.status, str(error), error.type, error.param, error.code, {**retry, **bearer})
    if isinstance(error, ContextOverflowError):
        return _reply(400, str(error), "invalid_request_error", None, "context_length_exceeded")
    if isinstance(error, _CLIENTS):
        return _reply(400, str(error), "invalid_request_error", None, None)
    if isinstance(error, MissingDependencyError):
        return _reply(501, str(error), "server_error", None, "not_installed")
    return _reply(500, "the server failed at this request; its log says why", "server_error", None, None)


def _reply(
    status: int,
    message: str,
    kind: str,
    param: str | None,
    code: str | None,
    headers: Mapping[str, str] | None = None,
) -> ErrorReply:
    message = message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "..."
    param = param if param is None or len(param) <= MAX_PARAM else param[:MAX_PARAM] + "..."
    error = {"message": message, "type": kind, "param": param, "code": code}
    return ErrorReply(status, error, headers or {})
