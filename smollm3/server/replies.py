"""Plain data to HTTP responses: JSON values and errors, written once for all endpoints."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from smollm3.server.errors import NotFoundError, RequestError, reply_to

# Kept: json.dumps would make one for each chunk.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def dumps(value: Any) -> bytes:
    """Write a value as JSON in UTF-8, without blanks."""
    return _encode(value).encode()


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(dumps(value), status, headers, media_type="application/json")


def error_reply(error: BaseException) -> Response:
    """Return the response that tells of an exception."""
    reply = reply_to(error)
    return json_reply(reply.body, reply.status, reply.headers)


def as_request_error(error: HTTPException, request: Request) -> RequestError:
    """Put starlette's own errors (no such path, wrong method) into our words."""
    if error.status_code == 404:
        return NotFoundError(f"no such path: {request.method} {request.url.path}")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return RequestError(f"{request.url.path} takes {allowed}, not {request.method}", status=405)
    return RequestError(str(error.detail), status=error.status_code)
