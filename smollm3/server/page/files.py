"""The chat page as routes: the files beside this module in, starlette routes with strict headers out.

The page is an OpenAI client like any other. This module knows no model, no key and no conversation: it serves
a fixed set of files, read once, by exact name.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from another host, nothing inline, and no way from a string to markup (trusted types): what a model
# writes can only ever be text.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """Return the routes of the chat page: `/` and `/page/<name>` for each of its files, GET and HEAD only."""
    return [Route(path, _endpoint(file), methods=["GET"]) for path, file in _page_files().items()]


def page_paths() -> frozenset[str]:
    """Return the exact paths that hold the page's files: the same for everybody, so they need no API key."""
    return frozenset(_page_files())


def _page_files() -> dict[str, Path]:
    """Map each path of the page to its file."""
    folder = Path(__file__).parent
    files = sorted(file for file in folder.iterdir() if file.suffix in MEDIA_TYPES)
    return {"/" if file.name == "index.html" else f"/page/{file.name}": file for file in files}


def _endpoint(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of one file: its bytes, or 304 to a browser that has them."""
    body = file.read_bytes()
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}

    async def serve(request: Request) -> Response:
        known = [
            tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
        ]
        if headers["ETag"] in known:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=MEDIA_TYPES[file.suffix], headers=headers)

    return serve
