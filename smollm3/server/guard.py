"""What a request must pass before its endpoint sees it: Host, Origin, key, encoding, size, number.

In: an ASGI scope. Out: nothing, a reply to a browser's question before the request, or a RequestError.
"""

import hmac
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from starlette.types import Scope

from smollm3.server.errors import (
    AuthenticationError,
    BodyTooLargeError,
    ForbiddenError,
    FramingError,
    NotFoundError,
    RequestError,
)
from smollm3.server.settings import Access, Limits

Headers = Mapping[bytes, bytes]
OPEN_PATHS = frozenset({"/health"})


class Guard:
    """Checks requests; `open_paths` need no key."""

    def __init__(self, access: Access, limits: Limits, open_paths: Iterable[str] = ()) -> None:
        self._access = access
        self._limits = limits
        self._open_paths = OPEN_PATHS.union(open_paths)
        self._digests = [_digest(key.encode()) for key in access.api_keys]

    def check(self, scope: Scope, headers: Headers) -> str:
        """Raise RequestError unless the request may go on; return the salt of its key."""
        self._check_size(scope, headers)
        self._check_host(headers)
        self._check_origin(headers)
        salt = self._check_key(scope["path"], headers)
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding != b"identity":
            raise RequestError("Content-Encoding: send the body as it is", status=415)
        if scope["path"].endswith("\n"):  # which the `$` in a route's pattern would let pass
            raise NotFoundError(f"no such path: {scope['path']!r}")
        return salt

    def owner(self, headers: Headers) -> str:
        """Return a name for the holder of a request's key, "" where there are none; `check` comes first."""
        key = headers.get(b"authorization", b"").partition(b" ")[2]
        return _digest(key.strip()).hex() if self._digests else ""

    def cors_headers(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return what lets a page of an allowed origin read the reply."""
        origin = headers.get(b"origin")
        if origin is None or not self._access.cors_origins:
            return []
        if "*" in self._access.cors_origins:
            return [(b"access-control-allow-origin", b"*")]
        if origin.decode("latin-1") in self._access.cors_origins:
            return [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
        return [(b"vary", b"Origin")]

    def preflight(self, scope: Scope, headers: Headers) -> list[tuple[bytes, bytes]] | None:
        """Return the reply's headers if this is a browser asking whether its page may send a request."""
        if scope["method"] != "OPTIONS" or b"access-control-request-method" not in headers:
            return None
        self._check_host(headers)
        allowed = self.cors_headers(headers)
        if not any(name == b"access-control-allow-origin" for name, _ in allowed):
            return None
        return [
            *allowed,
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", b"Authorization, Content-Type, X-Request-Id, X-Session-ID"),
            (b"access-control-max-age", b"600"),
        ]

    def _check_size(self, scope: Scope, headers: Headers) -> None:
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self._limits.max_header_bytes:
            limit = self._limits.max_header_bytes
            raise RequestError(f"the headers are over {limit} bytes: send less", status=431)
        if b"transfer-encoding" in headers and b"content-length" in headers:
            raise FramingError("Transfer-Encoding and Content-Length together: send one of them")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.max_body_bytes:
            raise self.too_large()

    def too_large(self) -> BodyTooLargeError:
        """Return the error of a body over the limit."""
        return BodyTooLargeError(f"the body is over {self._limits.max_body_bytes} bytes: send less")

    def _check_host(self, headers: Headers) -> None:
        if not self._access.hosts:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if name.strip("[]") not in self._access.hosts:
            raise ForbiddenError(
                f"Host {host[:100]!r} is not this server's: start it with --allowed-host for that name"
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get(b"origin")
        if origin is None or not self._access.check_origin:
            return
        text = origin.decode("latin-1")
        if {text, "*"}.isdisjoint(self._access.cors_origins):
            own = headers.get(b"host", b"").decode("latin-1").lower()
            if text.lower().partition("://")[2] != own or not own:
                raise ForbiddenError(
                    f"pages of {text[:100]!r} may not use this server: start it with --cors-origin for them"
                )

    def _check_key(self, path: str, headers: Headers) -> str:
        """Compare the key with all keys, whichever matches, so that time tells nothing; return its salt."""
        if not self._digests or path in self._open_paths:
            return ""
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = _digest(key.strip())
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(given, digest)
        if not found or scheme.lower() != b"bearer":
            raise AuthenticationError("send a valid API key as Authorization: Bearer KEY")
        return given.hex() if self._access.cache_per_key else ""


def cache_salts(access: Access) -> tuple[str, ...]:
    """Return the salts of all keys, under which a past must be known to be found by everybody."""
    if not access.cache_per_key:
        return ("",)
    return tuple(_digest(key.encode()).hex() for key in access.api_keys)


def _digest(key: bytes) -> bytes:
    """Make keys of any length equally long."""
    return blake2b(key, digest_size=16).digest()
