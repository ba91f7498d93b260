"""How the server behaves towards clients: limits, and who is let in. Frozen data, checked on construction."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from smollm3.errors import ParameterError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """What one client, and all of them together, may take. Times in seconds, sizes in bytes.

    max_requests: posted requests at once, from their headers to their last byte; then 429.
    max_connections: then 503 and the connection is closed.
    max_body_bytes: 413. max_header_bytes: request line and headers, 431.
    header_seconds, body_seconds: until the headers, and then the body, are there; 408.
    idle_seconds: a connection without a request. write_seconds: a reader that takes nothing is dropped.
    drain_seconds: how long requests may still run after SIGTERM.
    """

    max_requests: int = 128
    max_connections: int = 1024
    max_body_bytes: int = 2 * 1024 * 1024
    max_header_bytes: int = 32 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 60.0
    write_seconds: float = 30.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "drain_seconds" else 1 if isinstance(value, int) else 1e-3
            if not value >= least:
                raise ParameterError(f"{name}={value}: give at least {least:g}")


@dataclass(frozen=True)
class Access:
    """Who is let in.

    api_keys: none lets everybody in. cache_per_key: prompts' pasts are not shared between keys.
    hosts: names that a Host header may have; none are all. check_origin: refuse pages of other origins.
    cors_origins: origins whose pages may use the server; "*" is any, and credentials are never allowed.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cache_per_key: bool = False
    hosts: tuple[str, ...] = ()
    check_origin: bool = False
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ParameterError(
                    "an API key is empty, or has blanks or odd characters: give printable ASCII"
                )
        if self.cache_per_key and not self.api_keys:
            raise ParameterError("--cache-per-key needs keys: give --api-key or --api-key-file")
        for origin in self.cors_origins:
            parts = urlsplit(origin)
            if origin != "*" and (parts.scheme not in ("http", "https") or origin.count("/") != 2):
                raise ParameterError(f"--cors-origin {origin!r}: give one such as https://example.org, or *")


def access_for(
    host: str,
    *,
    api_keys: tuple[str, ...] = (),
    cache_per_key: bool = False,
    allowed_hosts: tuple[str, ...] = (),
    cors_origins: tuple[str, ...] = (),
) -> Access:
    """Return who is let in at an address: on loopback only loopback's names, against DNS rebinding."""
    loopback = is_loopback(host)
    hosts = (*LOOPBACK_NAMES, host.lower(), *allowed_hosts) if loopback else allowed_hosts
    return Access(api_keys, cache_per_key, tuple(name.lower() for name in hosts), loopback, cors_origins)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
