"""Faulty clients below the body: framing, headers, other protocols, slow and broken sending.

In: a Client. Out: nothing, or a FaultError where the server's reply is none of those that fit.
"""

import json

from faulty_client import Client, Kind
from faulty_texts import PATHS, encoded, valid
from faulty_wire import FaultError, request

REFUSED = (400, 408, 413, 431, 501, 505)
ANY = (200, 204, 400, 401, 403, 404, 405, 408, 413, 415, 431, 501, 505)
INNER = b'"object":"list"'  # in the reply to GET /v1/models, which a smuggled request asks for


def good(client: Client, **more: str) -> bytes:
    path, body = valid(client.draw, client.target.model)
    return request(client.target, path, encoded(client.draw, body), **more)


async def sends_garbage(client: Client) -> None:
    draw = client.draw
    data = draw.choice((
        draw.randbytes(draw.randint(1, 3000)), b"\r\n" * draw.randint(1, 3000),
        b"\x00" * draw.randint(1, 20_000),
        b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET  /health  HTTP/1.1\r\n\r\n", b"\n\n\n\n",
        b"QUIT\r\n",
        b"GET /health HTTP/1.1\r\n\r\n", b"A" * draw.randint(1, 30_000), b"SSH-2.0-OpenSSH_9.0\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16/",
        b"GET /health\r\n\r\n", b"* HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET http://127.0.0.1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"get /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ))  # fmt: skip
    await client.ask(data, *ANY, closed=True)


async def speaks_tls(client: Client) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + client.draw.randbytes(506)
    await client.ask(hello, 400, 408, 431)


async def speaks_http2(client: Client) -> None:
    await client.ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + client.draw.randbytes(9), 400, 403)


async def asks_for_a_websocket(client: Client) -> None:
    path = client.draw.choice((*PATHS, "/", "/health", "/ws"))
    upgrade = {
        "Upgrade": client.draw.choice(("websocket", "h2c", "x")),
        "Connection": "Upgrade, HTTP2-Settings",
    }
    more = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec_WebSocket_Version": "13", **upgrade}
    await client.ask(request(client.target, path, method="GET", **more), 200, 400, 404, 405, 426)


async def bombs_headers(client: Client) -> None:
    draw, most = client.draw, client.target.bounds.header_bytes
    size = draw.choice((most - 200, most, most * 2, 1_000_000))
    form = draw.randrange(4)
    if form == 0:
        data = good(client, X_Long="x" * size)
    elif form == 1:
        data = good(client, **{f"X_{idx}": "y" * draw.randint(0, 90) for idx in range(size // 60)})
    elif form == 2:
        data = request(client.target, "/" + "z" * size, method="GET")
    else:
        data = request(client.target, "/health?" + "a=b&" * (size // 4), method="GET")
    await client.ask(data, 200, 404, 431)


async def lies_about_its_length(client: Client) -> None:
    """More than comes is 408; less leaves bytes that are no request, and never another's reply."""
    draw = client.draw
    path, body = valid(draw, client.target.model)
    data = encoded(draw, {**body, "stream": False} if "stream" in body else body)
    if draw.random() < 0.5:
        told = len(data) + draw.randint(1, 9000)
        await client.ask(request(client.target, path, data, Content_Length=str(told)), 408)
        return
    told = draw.randint(0, len(data) - 1)
    wire = await client.open()
    await wire.send(request(client.target, path, data, Content_Length=str(told)))
    client.expect(await wire.reply(), 400, wire=wire)
    client.expect(await wire.reply(), *REFUSED, wire=wire, closed=True)


async def breaks_chunks(client: Client) -> None:
    draw = client.draw
    path, body = valid(draw, client.target.model)
    data = encoded(draw, body)
    head = request(client.target, path, without=("Content-Length",), Transfer_Encoding="chunked")
    size = draw.randint(1, len(data))
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    if draw.random() < 0.3:
        extra = draw.choice((b"0\r\n\r\n", b"0;x=y\r\n\r\n", b"000\r\nX-Trailer: 1\r\n\r\n"))
        await client.ask(head + chunks + extra, 200)
        return
    wrong = draw.choice((
        b"zz\r\nhello\r\n", b"-5\r\nhello\r\n", b"5\r\nhelloXX\r\n", b"\x00" * 50 + b"\r\n",
        b"0x5\r\nhello\r\n",
        b"ffffffffffffffffff\r\nhello", b"5 \r\nhello\r\n\r\n", b"5\nhello\n", b" 5\r\nhello\r\n",
        b"5;" + b"x" * 20_000,
        b"1" * 5000 + b"\r\n", b"\r\n\r\n",
    ))  # fmt: skip
    await client.ask(head + chunks[: draw.randint(0, len(chunks))] + wrong + b"0\r\n\r\n", *ANY)


async def smuggles(client: Client) -> None:
    """Framing that two readers may read in two ways, with a request hidden in it: it is never answered."""
    draw, target = client.draw, client.target
    key = f"Authorization: Bearer {target.keys[0]}\r\n"
    hidden = f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n{key}\r\n".encode()
    base = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{key}"
    length = f"Content-Length: {len(hidden) + 5}\r\n"
    forms = (
        length + "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\n" + length,
        length + "Transfer-Encoding : chunked\r\n", length + "Transfer-Encoding:\x0bchunked\r\n",
        length + "Transfer-Encoding: xchunked\r\n", length + "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n" + length,
        length + "Content-Length: 5\r\n", "Content-Length: 5, 6\r\n", "Content-Length: +5\r\n",
        "Content-Length: 5 \r\n 1\r\n",
        "Content-Length: 0x5\r\n", "Content-Length: -1\r\n", "Content-Length: 1_0\r\n",
        "Content-Length: \u0665\r\n",
        length + "X: y\nTransfer-Encoding: chunked\r\n", length + "Foo\r\n", length + "X\x00: y\r\n",
        length + " Transfer-Encoding: chunked\r\n",
    )  # fmt: skip
    wire = await client.open()
    await wire.send((base + draw.choice(forms) + "\r\n").encode() + b"0\r\n\r\n" + hidden)
    replies = []
    while True:
        reply = await wire.reply()
        if reply is None:
            break
        client.expect(reply, *REFUSED, wire=wire)
        replies.append(reply)
        if INNER in reply.body:
            raise FaultError("a hidden request was answered")
    if len(replies) > 2:
        raise FaultError(f"{len(replies)} replies to one request")


async def pipelines(client: Client) -> None:
    """Several requests at once are answered in their order."""
    draw, target = client.draw, client.target
    known = {
        200: request(target, "/health", method="GET"),
        404: request(target, "/nowhere", method="GET"),
        405: request(target, "/health", b"{}", method="PUT"),
        401: request(target, "/v1/models", method="GET", key="wrong"),
        400: request(target, "/v1/completions", b"{}"),
        415: request(target, "/tokenize", b"{}", Content_Type="text/plain"),
    }
    wanted = [draw.choice(sorted(known)) for _ in range(draw.randint(2, 30))]
    wire = await client.open()
    await wire.send(b"".join(known[status] for status in wanted))
    for status in wanted:
        client.expect(reply := await wire.reply(), status, wire=wire)
        if reply is None or reply.status == 503:
            return


async def changes_a_head(client: Client) -> None:
    """A valid request with some bytes of its head changed, cut out or doubled."""
    draw = client.draw
    head, _, body = good(client).partition(b"\r\n\r\n")
    for _ in range(draw.randint(1, 4)):
        at, size = draw.randrange(len(head)), draw.randint(1, 12)
        piece = draw.choice(
            (b"", head[at : at + size] * 2, draw.randbytes(size), b"\r\n", b"\n", b"\x00", b":")
        )
        head = head[:at] + piece + head[at + draw.randint(0, size) :]
    wire = await client.open()
    await wire.send(head + b"\r\n\r\n" + body)
    wire.half_close()
    client.expect(await wire.reply(), *ANY, wire=wire, closed=True, cut=True)


async def trickles_headers(client: Client) -> None:
    wire = await client.open()
    data = good(client, X_Pad="x" * 2000)
    await wire.trickle(data[:2000], client.draw.randint(1, 20), client.draw.uniform(0.02, 0.3))
    client.expect(await wire.reply(), 200, 408, wire=wire)


async def trickles_a_body(client: Client) -> None:
    wire = await client.open()
    head, _, body = good(client).partition(b"\r\n\r\n")
    await wire.send(head + b"\r\n\r\n")
    await wire.trickle(body, client.draw.randint(1, 9), client.draw.uniform(0.02, 0.5))
    client.expect(await wire.reply(), 200, 408, wire=wire)


async def sends_in_pieces(client: Client) -> None:
    """A proper request in pieces of any size: it is answered as if whole."""
    wire, data = await client.open(), good(client)
    for _ in range(client.draw.randint(1, 6)):
        at = client.draw.randint(0, len(data))
        await wire.send(data[:at])
        data = data[at:]
        await client.pause(0, 0.05)
    await wire.send(data)
    client.expect(await wire.reply(), 200, wire=wire)


async def says_nothing(client: Client) -> None:
    wire = await client.open()
    if client.draw.random() < 0.5:
        await client.pause(0, 0.2)
        client.leave(wire)
        return
    client.expect(await wire.reply(), closed=True)


async def half_closes(client: Client) -> None:
    """Whoever says that nothing more comes is answered, or taken for gone: either is right."""
    wire = await client.open()
    data = good(client)
    await wire.send(data[: client.draw.randint(1, len(data))] if client.draw.random() < 0.5 else data)
    await client.pause(0, 0.1)
    wire.half_close()
    client.expect(await wire.reply(), 200, 400, 408, closed=True, cut=True)


async def resets_at_a_byte(client: Client) -> None:
    wire, data = await client.open(), good(client)
    await wire.send(data[: client.draw.randint(0, len(data))])
    await client.pause(0, 0.05)
    wire.reset()


async def expects_to_go_on(client: Client) -> None:
    """Expect: 100-continue, kept or not."""
    draw = client.draw
    head, _, body = good(client, Expect=draw.choice(("100-continue", "200-ok", ""))).partition(b"\r\n\r\n")
    wire = await client.open()
    await wire.send(head + b"\r\n\r\n")
    await client.pause(0, 0.1)
    await wire.send(body)
    client.expect(await wire.reply(), 200, 417, wire=wire)


async def speaks_http10(client: Client) -> None:
    data = good(client).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
    await client.ask(data, 200)


async def sends_too_much(client: Client) -> None:
    """A body over the limit, told or counted as it comes."""
    draw, most = client.draw, client.target.bounds.body_bytes
    path, _ = valid(draw, client.target.model)
    size = draw.choice((most + 1, most * 2, 20_000_000))
    if draw.random() < 0.5:
        told = draw.choice((size, 10**12, 10**30))
        data = request(client.target, path, b"{", Content_Length=str(told)) + b" " * min(size, most * 2)
        await client.ask(data, 400, 413)
        return
    head = request(client.target, path, without=("Content-Length",), Transfer_Encoding="chunked")
    piece = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    data = head + piece * (size // 0x4000 + 1) + b"0\r\n\r\n"
    await client.ask(data, 400, 413, closed=size > most * 2)


async def is_not_let_in(client: Client) -> None:
    """Wrong keys, hosts and origins, encodings, types and methods: each has its status."""
    draw, target = client.draw, client.target
    path, body = valid(draw, target.model)
    data = json.dumps(body).encode()
    status, made = draw.choice((
        (401, request(target, path, data, key=None)),
        (401, request(target, path, data, key=draw.choice(("x", "sk-", target.keys[0][:-1], "y" * 3000,
        "é")))),
        (401, request(target, path, data, Authorization=f"Basic {target.keys[0]}")),
        (401, request(target, "/metrics", method="GET", key=None)),
        (403, request(target, path, data, Host=draw.choice(("evil.example", "127.0.0.1.evil.example:80",
        "[::2]", "x" * 300)))),
        (403, request(target, path, data, Origin=draw.choice(("http://evil.example", "null", "file://")))),
        (415, request(target, path, data, Content_Type=draw.choice(("text/plain",
        "multipart/form-data; boundary=x")))),
        (415, request(target, path, data, Content_Encoding=draw.choice(("gzip", "br", "identity, gzip")))),
        (405, request(target, path, data, method=draw.choice(("PUT", "PATCH", "DELETE", "FOO")))),
        (405, request(target, path, method="GET")),
        (404, request(target, path + draw.choice(("/", "//", "/../x", "%00", "%2e%2e", "\\")), data)),
        (404, request(target, "/v1/models/" + draw.choice(("..%2f..%2fetc%2fpasswd", "x", "%00",
        "a" * 2000)), method="GET")),
        (404, request(target, "/page/" + draw.choice(("../app.py", "%2e%2e/app.py", "x", "%c0%ae")),
        method="GET")),
        (404, request(target, "/v1/responses/resp_" + "0" * draw.randint(0, 99), method="GET")),
    ))  # fmt: skip
    await client.ask(made, status)


KINDS = {
    "sends_garbage": Kind(sends_garbage, 2),
    "speaks_tls": Kind(speaks_tls, 0.5),
    "speaks_http2": Kind(speaks_http2, 0.5),
    "asks_for_a_websocket": Kind(asks_for_a_websocket, 0.5),
    "bombs_headers": Kind(bombs_headers),
    "lies_about_its_length": Kind(lies_about_its_length),
    "breaks_chunks": Kind(breaks_chunks, 2),
    "smuggles": Kind(smuggles, 2),
    "pipelines": Kind(pipelines),
    "changes_a_head": Kind(changes_a_head, 3),
    "trickles_headers": Kind(trickles_headers),
    "trickles_a_body": Kind(trickles_a_body),
    "sends_in_pieces": Kind(sends_in_pieces),
    "says_nothing": Kind(says_nothing),
    "half_closes": Kind(half_closes),
    "resets_at_a_byte": Kind(resets_at_a_byte, 2),
    "expects_to_go_on": Kind(expects_to_go_on, 0.5),
    "speaks_http10": Kind(speaks_http10, 0.5),
    "sends_too_much": Kind(sends_too_much),
    "is_not_let_in": Kind(is_not_let_in, 2),
}
