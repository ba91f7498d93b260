"""Limits of the HTTP side, by raw sockets: sizes, framing, deadlines, numbers, readers that stall."""

import asyncio
import contextlib
import errno
import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from raw_clients import (
    connected,
    endless,
    exchange,
    parse,
    read_all,
    read_reply,
    request,
    wait_until,
)
from serving import Running, running
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from tiny_models import tiny_model

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server.app import build_app
from smollm3.server.build import ServiceOptions, build_service
from smollm3.server.service import Service
from smollm3.server.settings import Limits
from smollm3.tokenization import SmolLM3Tokenizer

LIMITS = Limits(
    max_requests=4,
    max_connections=40,
    max_body_bytes=10_000,
    max_header_bytes=4096,
    header_seconds=0.4,
    body_seconds=0.4,
    write_seconds=0.4,
)
sent: list[int] = []  # bytes that each flood handed over before it ended


class Flood:
    """Streams without end, and notes how much that was."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num = 0
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                num += 65536
        finally:
            sent.append(num)


BRIEF = b"x" * 90_000  # more than the kernel takes of it, and little enough to be handed over at once


async def brief(request: Request) -> Response:
    return Response(BRIEF)


@pytest.fixture(scope="module")
def server(tiny_tokenizer: SmolLM3Tokenizer) -> Iterator[Running]:
    model = tiny_model(SmolLM3ForCausalLM, max_position_embeddings=32_768)
    service = build_service(model, tiny_tokenizer, "tiny", ServiceOptions(max_requests=4))
    app = build_app(service, limits=LIMITS, more_routes=[Route("/flood", Flood()), Route("/brief", brief)])
    with running(app, service, LIMITS, send_buffer=16_384) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_is_left(server: Running) -> Iterator[None]:
    yield
    wait_until(lambda: server.service.num_active == 0)
    wait_until(lambda: not server.service.engine.has_work)
    with server.client() as client:
        assert client.get("/health").status_code == 200


def code_of(body: dict[str, Any]) -> str:
    return str(body["error"]["code"])


def test_a_body_over_the_limit_is_refused_by_its_declared_length(server: Running) -> None:
    status, body = exchange(server.port, request(Content_Length="10001"))
    assert (status, code_of(body)) == (413, "request_too_large")


def test_a_body_over_the_limit_is_refused_though_no_length_is_declared(server: Running) -> None:
    head = request(Content_Length="", Transfer_Encoding="chunked")
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    status, body = exchange(server.port, head + chunk * 40 + b"0\r\n\r\n")
    assert (status, code_of(body)) == (413, "request_too_large")


def test_a_refused_body_that_goes_on_ends_with_its_connection(server: Running) -> None:
    with connected(server.port) as connection:
        connection.sendall(request(Content_Length="1000000000"))
        assert parse(read_reply(connection))[0] == 413
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 8:
                connection.sendall(b" " * 1000)
                time.sleep(0.02)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("framing", [{"Content_Length": "10"}, {"Transfer_Encoding": "chunked"}])
@pytest.mark.parametrize("path", ["/nowhere", "/health", "/v1/completions"])
def test_a_reply_that_comes_before_its_body_leaves_the_connection_fit_for_use(
    server: Running, path: str, framing: dict[str, str]
) -> None:
    body = b"a\r\n0123456789\r\n0\r\n\r\n" if "Transfer_Encoding" in framing else b"0123456789"
    head = request(path=path, **{"Content_Length": "", "Content_Type": "text/plain", **framing})
    with connected(server.port) as connection:
        for after in (b"", request("GET", "/health")):  # the next request by itself, or with the body's end
            connection.sendall(head)
            status = parse(read_reply(connection))[0]
            assert status in (404, 405, 415)
            for piece in (body[:4], body[4:] + after):
                connection.sendall(piece)
                time.sleep(0.05)
        assert parse(read_reply(connection))[0] == 200


def test_a_reply_that_comes_before_its_body_is_read_though_the_client_wants_the_end(server: Running) -> None:
    with connected(server.port) as connection:
        connection.sendall(request(path="/nowhere", Content_Length="9000", Connection="close"))
        for _ in range(90):
            time.sleep(0.002)
            connection.sendall(b" " * 100)
        assert parse(read_all(connection))[0] == 404


@pytest.mark.parametrize("form", ["one header", "many headers", "the path"])
def test_headers_of_a_megabyte_are_431(server: Running, form: str) -> None:
    if form == "one header":
        data = request(X_Long="x" * 1_000_000)
    elif form == "many headers":
        data = request(**{f"X_{idx}": "y" * 100 for idx in range(9000)})
    else:
        data = request("GET", "/" + "z" * 1_000_000)
    assert exchange(server.port, data)[0] == 431


def test_what_a_client_sent_does_not_all_come_back(server: Running) -> None:
    twins = b'{"%b": 1, "%b": 2}' % ((b"k" * 4000,) * 2)
    for data, status in ((request("GET", "/" + "z" * 3900), 404), (request(body=twins), 400)):
        found, body = exchange(server.port, data)
        assert found == status
        assert len(json.dumps(body)) < 2500


def test_headers_over_the_limit_that_come_at_once_are_431(server: Running) -> None:
    assert exchange(server.port, request("GET", "/health", X_Long="x" * 5000))[0] == 431


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"\x00" * 50 + b"\r\n",
    ],
)
def test_broken_chunks_are_400(server: Running, chunks: bytes) -> None:
    head = request(Content_Length="", Transfer_Encoding="chunked")
    status, body = exchange(server.port, head + chunks)
    assert status == 400
    assert "HTTP/1.1" in body["error"]["message"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400(server: Running, data: bytes) -> None:
    assert exchange(server.port, data)[0] == 400


def test_a_client_that_goes_while_it_is_refused_is_no_error(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the kernel says it when the client's reset comes between the reply and its end."""

    def gone(transport: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(asyncio.selector_events._SelectorSocketTransport, "write_eof", gone)
    for begun in (b"", request("GET", "/health")):
        with connected(server.port) as connection:
            connection.sendall(begun + b"SM\r\n\r\n")
            assert b"HTTP/1.1 400 " in read_all(connection)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_two_framings_at_once_never_smuggle_a_second_request(server: Running) -> None:
    inner = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connected(server.port) as connection:
        connection.sendall(request(Transfer_Encoding="chunked", Content_Length=str(len(inner))) + inner)
        connection.shutdown(socket.SHUT_WR)
        assert b'"object":"list"' not in read_all(connection)


def test_unknown_transfer_encodings_are_refused(server: Running) -> None:
    status, _ = exchange(server.port, request(Content_Length="", Transfer_Encoding="gzip, chunked"))
    assert status in (400, 501)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
def test_packed_bodies_are_415(server: Running, encoding: str) -> None:
    data = request(body=b"\x1f\x8b\x08\x00" * 10, Content_Encoding=encoding)
    assert exchange(server.port, data)[0] == 415


def test_slow_headers_are_408(server: Running) -> None:
    with connected(server.port) as connection:
        began = time.monotonic()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        for idx in range(3):
            time.sleep(0.1)
            connection.sendall(f"X-{idx}: 1\r\n".encode())
        assert parse(read_all(connection))[0] == 408
        assert 0.3 < time.monotonic() - began < 4


def test_a_connection_that_says_nothing_is_closed_without_a_word(server: Running) -> None:
    with connected(server.port) as connection:
        assert read_all(connection) == b""


def test_a_slow_body_is_408(server: Running) -> None:
    with connected(server.port) as connection:
        connection.sendall(request(Content_Length="1000"))
        for _ in range(3):
            time.sleep(0.1)
            connection.sendall(b" ")
        assert parse(read_all(connection))[0] == 408


def test_slow_headers_that_came_with_the_request_before_are_408_too(server: Running) -> None:
    with connected(server.port) as connection:
        connection.sendall(request("GET", "/health") + b"GET /health HTT")
        first, second = (parse(reply)[0] for reply in (read_reply(connection), read_all(connection)))
        assert (first, second) == (200, 408)


def test_slow_headers_of_a_second_request_are_408_too(server: Running) -> None:
    with connected(server.port) as connection:
        connection.sendall(request("GET", "/health"))
        assert parse(read_reply(connection))[0] == 200
        time.sleep(0.6)  # idle is no fault
        connection.sendall(b"GET /health HTT")
        assert parse(read_all(connection))[0] == 408


def test_many_slow_clients_keep_nobody_waiting(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(connected(server.port))
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        began = time.monotonic()
        with server.client() as client:
            assert client.get("/health").status_code == 200
        assert time.monotonic() - began < 2


def test_too_many_connections_are_503(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        replies = []
        for _ in range(60):
            connection = stack.enter_context(connected(server.port))
            connection.sendall(request("GET", "/health"))
            replies.append(parse(read_reply(connection))[0])
        assert replies[:40] == [200] * 40
        assert replies[-1] == 503


def test_a_reader_that_stalls_is_dropped_and_no_buffer_grows(server: Running) -> None:
    sent.clear()
    with connected(server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request("GET", "/flood"))
        wait_until(lambda: sent)
    assert 65536 < sent[0] < 20_000_000


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_reader_that_takes_nothing_of_a_replys_end_is_dropped(server: Running, connection: str) -> None:
    """Its reply is written, but for less than what would pause the writing."""
    with connected(server.port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request("GET", "/brief", Connection=connection))
        time.sleep(2)
        assert len(read_all(client)) < len(BRIEF)


def test_a_reader_that_takes_a_little_now_and_then_gets_all(tiny_service: Service) -> None:
    limits = Limits(write_seconds=1.0)
    app = build_app(tiny_service, limits=limits, more_routes=[Route("/brief", brief)])
    with running(app, tiny_service, limits, send_buffer=16_384) as server, connected(server.port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request("GET", "/brief"))
        seen = b""
        while len(seen) < len(BRIEF):  # for longer than two looks at what is left
            piece = client.recv(4096)
            assert piece, "it was dropped"
            seen += piece
            time.sleep(0.1)


def test_one_too_many_is_429_with_a_time_to_come_back(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(connected(server.port))
            connection.sendall(endless())
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        with server.client() as client:
            refused = client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1})
            assert refused.status_code == 429
            assert refused.headers["Retry-After"] == "1"
            assert refused.json()["error"]["code"] == "too_many_requests"
            assert client.get("/metrics").status_code == 200


def test_a_thousand_at_once_are_refused_and_not_queued_without_end(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(connected(server.port))
            connection.sendall(endless())
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        clients = [stack.enter_context(connected(server.port)) for _ in range(20)]
        for client in clients:
            client.sendall(request(body=b"{}") * 49 + request(body=b"{}", Connection="close"))
        replies = b"".join(map(read_all, clients))
        assert replies.count(b"HTTP/1.1 429 ") == replies.count(b"HTTP/1.1") == 1000
        assert server.service.num_active == 4


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("when", ["half sent", "in the queue", "in prefill", "in decode"])
def test_whoever_vanishes_frees_the_engine(server: Running, when: str, stream: bool) -> None:
    with connected(server.port) as connection:
        num_choices = 4 if when == "in the queue" else 1
        prompt = "The capital of France is Paris. " * (280 if when == "in prefill" else 1)
        connection.sendall(endless(prompt=prompt, stream=stream, max_tokens=7000, n=num_choices)[:-1])
        if when != "half sent":
            connection.sendall(b"}")
            wait_until(lambda: server.service.num_active)
        if when == "in decode":
            wait_until(lambda: next(iter(server.service._active.values())).num_generated > 3)
    wait_until(lambda: server.service.num_active == 0, 5)
    wait_until(lambda: not server.service.engine.has_work, 5)
