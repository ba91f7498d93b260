"""Faulty clients that leave, stall or come in crowds, with requests that would keep the engine busy.

In: a Client. Out: nothing, or a FaultError where the server's reply is none of those that fit.
"""

import asyncio
import contextlib
import subprocess
import sys
from typing import Any

from faulty_client import Client, Kind
from faulty_texts import WORDS, Body, encoded, text
from faulty_wire import Wire, request

# What runs in a process of its own, to be stopped by a signal: connects, sends, stops itself.
STOPPED = """
import os, signal, socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
s.connect(("127.0.0.1", int(sys.argv[1]))); s.sendall(sys.stdin.buffer.read())
os.kill(os.getpid(), signal.SIGSTOP); s.recv(100000)
"""


def endless(client: Client, **fields: Any) -> bytes:
    """A request for a long answer: the ids that would end it are forbidden."""
    draw = client.draw
    body: Body = {"model": client.target.model, "max_tokens": draw.randint(100, 600), "temperature": 1.2}
    body |= {
        "logit_bias": {"0": -100, "2": -100},
        "stream": draw.random() < 0.6,
        "prompt": text(draw),
        **fields,
    }
    return request(client.target, "/v1/completions", encoded(draw, body))


def long_prompt(client: Client, most: int = 800) -> str:
    """A text of one to `most` ids or so that nobody else has."""
    return " ".join(client.draw.choices(WORDS, k=client.draw.randint(most // 4, most) * 3 // 5))


async def leaves_in_the_queue(client: Client) -> None:
    wires = [await client.open() for _ in range(client.draw.randint(2, 4))]
    for wire in wires:
        await wire.send(endless(client, n=client.draw.randint(4, 8), max_tokens=100))
    await client.pause(0, 0.3)
    for wire in wires:
        client.leave(wire)


async def leaves_in_prefill(client: Client) -> None:
    wire = await client.open()
    await wire.send(endless(client, prompt=long_prompt(client), max_tokens=20))
    await client.pause(0, 0.5)
    client.leave(wire)


async def leaves_in_decode(client: Client) -> None:
    wire = await client.open()
    await wire.send(endless(client, stream=False))
    await client.pause(0.3, 3)
    client.leave(wire)


async def leaves_after_events(client: Client) -> None:
    wire = await client.open()
    await wire.send(endless(client, stream=True, n=client.draw.choice((1, 1, 3))))
    num, seen = client.draw.randint(0, 20), b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while seen.count(b"data: ") < num and (piece := await wire.receive()):
                seen += piece
    if client.draw.random() < 0.3:
        wire.half_close()
        await client.pause(0, 0.5)
    client.leave(wire)


async def resets_a_reply(client: Client) -> None:
    """Read a few bytes of a reply, then reset."""
    wire = await client.open()
    await wire.send(endless(client, max_tokens=client.draw.randint(1, 10)))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            await wire.receive(client.draw.randint(1, 400))
    wire.reset()


async def never_reads(client: Client) -> None:
    """Ask for much and take none of it, for longer than the server waits, or not quite."""
    wire = await client.open(receive_buffer=2048)
    bulk = {"stream": True, "n": 8, "logprobs": 20, "max_tokens": 100}
    await wire.send(endless(client, **bulk))
    await client.pause(0.2, 2 * client.target.bounds.write_seconds)
    client.leave(wire)


async def reads_no_replies(client: Client) -> None:
    """Ask for the page again and again on one connection and take none of it."""
    wire = await client.open(receive_buffer=2048)
    ask = request(client.target, "/page/app.js", method="GET")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(client.draw.uniform(0.5, 3 * client.target.bounds.write_seconds)):
            for _ in range(40):
                await wire.send(ask * 50)
            await asyncio.sleep(60)
    client.leave(wire)


async def is_stopped(client: Client) -> None:
    """A process of its own that is stopped while it should read; then it goes on, or is killed."""
    data = endless(client, stream=True, n=4, logprobs=20)
    client.target.count(1)
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", STOPPED, str(client.target.address.port)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert child.stdin is not None
        child.stdin.write(data)
        child.stdin.close()
        await client.pause(0.5, 2 * client.target.bounds.write_seconds)
    finally:
        child.kill()
        child.wait()
        client.target.count(-1)


async def fills_the_cache(client: Client) -> None:
    """Several long prompts at once, more than the cache holds: all are answered, one after the other."""
    wires = [await client.open() for _ in range(client.draw.randint(3, 5))]
    for wire in wires:
        fields = {"n": client.draw.choice((1, 2)), "max_tokens": client.draw.randint(1, 60)}
        await wire.send(endless(client, prompt=long_prompt(client, 700), **fields))
    if client.draw.random() < 0.5:
        await client.pause(0.2, 2)
        client.leave(wires.pop())
    for wire in wires:
        client.expect(await wire.reply(), 200, wire=wire)


async def outgrows_the_cache(client: Client) -> None:
    """Short prompts whose answers together outgrow the cache: some are put back and go on later."""
    wires = [await client.open() for _ in range(client.draw.randint(5, 8))]
    for wire in wires:
        await wire.send(endless(client, max_tokens=client.draw.randint(70, 150)))
    for wire in wires:
        client.expect(await wire.reply(), 200, wire=wire)


async def asks_all_at_once(client: Client) -> None:
    """More requests than the server takes at once: what is over is 429."""
    wires: list[Wire] = []
    for _ in range(client.target.bounds.requests + 4):
        wires.append(await client.open())
    for wire in wires:
        await wire.send(endless(client, max_tokens=client.draw.randint(1, 8)))
    for wire in wires:
        client.expect(await wire.reply(), 200, wire=wire)


async def connects_all_at_once(client: Client) -> None:
    """More connections than the server takes, which say nothing or ask for little."""
    wires: list[Wire] = []
    for _ in range(client.target.bounds.connections + 10):
        wires.append(await client.open())
    for wire in client.draw.sample(wires, 10):
        await wire.send(request(client.target, "/health", method="GET"))
    await client.pause(0, 0.5)
    for wire in wires:
        client.leave(wire)


async def comes_and_goes(client: Client) -> None:
    """Many connections one after the other, most of them for nothing."""
    for _ in range(client.draw.randint(10, 60)):
        wire = await client.open()
        if client.draw.random() < 0.3:
            await wire.send(request(client.target, "/v1/models", method="GET"))
        client.leave(wire)
        client.target.crowd()  # the server may come upon all of them at once


KINDS = {
    "leaves_in_the_queue": Kind(leaves_in_the_queue, 2),
    "leaves_in_prefill": Kind(leaves_in_prefill, 2),
    "leaves_in_decode": Kind(leaves_in_decode, 2),
    "leaves_after_events": Kind(leaves_after_events, 3),
    "resets_a_reply": Kind(resets_a_reply, 2),
    "never_reads": Kind(never_reads),
    "reads_no_replies": Kind(reads_no_replies),
    "is_stopped": Kind(is_stopped, 0.5),
    "fills_the_cache": Kind(fills_the_cache),
    "outgrows_the_cache": Kind(outgrows_the_cache, 0.7),
    "asks_all_at_once": Kind(asks_all_at_once),
    "connects_all_at_once": Kind(connects_all_at_once, 0.5),
    "comes_and_goes": Kind(comes_and_goes),
}
