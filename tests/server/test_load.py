"""Many clients at once, some of whom leave: each answer is that of the request alone, nothing is left over.

The long run, on a real model and with the machine's figures, is bench/serve.py's soak.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, running
from tiny_models import tiny_model

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server.app import build_app
from smollm3.server.build import ServiceOptions, build_service
from smollm3.tokenization import SmolLM3Tokenizer

NUM_STREAMS, NUM_ROUNDS, NUM_KINDS = 64, 3, 32
TEXT = "Ada Lovelace wrote to Charles Babbage in London about the engine and the harbour"
Body = dict[str, Any]
# What an answer is: per choice its text and how it ended, and the counts of ids.
Seen = tuple[list[tuple[str, str]], dict[str, int]]


@pytest.fixture(scope="module")
def server(tiny_tokenizer: SmolLM3Tokenizer) -> Iterator[Running]:
    """A tiny model on the native engine, whose answers do not depend on who else is there."""
    model = tiny_model(SmolLM3ForCausalLM, hidden_size=64, intermediate_size=64).bfloat16()
    service = build_service(model, tiny_tokenizer, "tiny", ServiceOptions(engine="native"))
    with running(build_app(service), service) as server:
        yield server


def random_request(draw: random.Random) -> tuple[str, Body]:
    """A route and a body with an answer that is the same each time: greedy, or drawn with a seed."""
    body: Body = {"model": "tiny", "max_tokens": draw.randint(1, 40), "seed": draw.randrange(2**31)}
    choices: dict[str, Any] = {
        "temperature": draw.choice([0, 0.3, 1, 2]),
        "top_p": draw.uniform(0.5, 1),
        "top_k": draw.randint(0, 50),
        "min_p": draw.uniform(0, 0.2),
        "repetition_penalty": draw.uniform(1, 1.3),
        "presence_penalty": draw.uniform(-1, 1),
        "frequency_penalty": draw.uniform(-1, 1),
        "logit_bias": {str(draw.randrange(400)): draw.uniform(-5, 5)},
        "stop": draw.sample(["e", " the", "in", "zz", "\n"], draw.randint(1, 2)),
        "n": draw.randint(1, 3),
        "prompt_lookup": draw.random() < 0.5,
    }
    body |= {name: choices[name] for name in draw.sample(sorted(choices), draw.randint(0, 6))}
    text = " ".join(draw.choices(TEXT.split(), k=draw.randint(1, 60)))
    if draw.random() < 0.5:
        return "/v1/completions", {**body, "prompt": text}
    return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}


async def alone(client: httpx.AsyncClient, route: str, body: Body) -> Seen:
    reply = await client.post(route, json=body)
    assert reply.status_code == 200, reply.text
    found = reply.json()
    texts = [choice.get("text", choice.get("message", {}).get("content")) for choice in found["choices"]]
    reasons = [choice["finish_reason"] for choice in found["choices"]]
    return list(zip([text or "" for text in texts], reasons, strict=True)), counts(found["usage"])


def counts(usage: Body) -> dict[str, int]:
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


async def streamed(client: httpx.AsyncClient, route: str, body: Body, leave_after: int | None) -> Seen | None:
    """Return what a stream adds up to; None if it was left after so many events."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    texts, reasons = [""] * body.get("n", 1), [""] * body.get("n", 1)
    usage: dict[str, int] = {}
    async with client.stream("POST", route, json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        num_events = 0
        async for line in reply.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            if num_events == leave_after:
                return None
            num_events += 1
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            for choice in event["choices"]:
                piece = choice["text"] if "text" in choice else choice["delta"].get("content")
                texts[choice["index"]] += piece or ""
                reasons[choice["index"]] += choice["finish_reason"] or ""
            usage = counts(event["usage"]) if event.get("usage") else usage
    return list(zip(texts, reasons, strict=True)), usage


async def one_round(
    client: httpx.AsyncClient, pool: list[tuple[str, Body]], expected: list[Seen], draw: random.Random
) -> int:
    """Run all streams at once; return how many were read to their end, all of which were right."""
    places = [draw.randrange(len(pool)) for _ in range(NUM_STREAMS)]
    leave = [draw.randint(0, 6) if draw.random() < 0.25 else None for _ in places]
    seen = await asyncio.gather(
        *(
            streamed(client, *pool[place], leave_after=after)
            for place, after in zip(places, leave, strict=True)
        )
    )
    for place, found in zip(places, seen, strict=True):
        assert found is None or found == expected[place], pool[place]
    return sum(found is not None for found in seen)


def held() -> tuple[int, int, int]:
    """Descriptors, threads and bytes of this process, the server included."""
    status = Path("/proc/self/status").read_text()
    facts = dict(line.split(":", 1) for line in status.splitlines())
    return len(list(Path("/proc/self/fd").iterdir())), int(facts["Threads"]), int(facts["VmRSS"].split()[0])


def test_many_streams_answer_as_alone_and_leave_nothing_behind(server: Running) -> None:
    draw = random.Random(4)
    pool = [random_request(draw) for _ in range(NUM_KINDS)]
    limits = httpx.Limits(max_connections=NUM_STREAMS)
    after: list[tuple[int, int, int]] = []

    async def main() -> int:
        num_read = 0
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=limits, trust_env=False
        ) as client:
            expected = [await alone(client, route, body) for route, body in pool]
        for _ in range(NUM_ROUNDS):
            async with httpx.AsyncClient(
                base_url=server.url, timeout=120, limits=limits, trust_env=False
            ) as client:
                num_read += await one_round(client, pool, expected, draw)
            after.append(await settled(server))
        return num_read

    num_read = asyncio.run(main())
    assert num_read > NUM_ROUNDS * NUM_STREAMS // 2
    first, last = after[0], after[-1]
    assert last[0] <= first[0] + 2, "descriptors"
    assert last[1] <= first[1] + 2, "threads"
    assert last[2] < first[2] * 1.05, "memory"


async def settled(server: Running) -> tuple[int, int, int]:
    """Wait until the server has noticed that everybody is gone, and return what is held then."""
    deadline = time.monotonic() + 20
    while True:
        stats = server.service.engine.stats()
        if not (server.service.num_active or stats.num_running or stats.num_waiting):
            break
        assert time.monotonic() < deadline, f"{server.service.num_active} requests are left: {stats}"
        await asyncio.sleep(0.02)
    assert stats.cache_tokens_used == 0, "no sequence holds any of the cache"
    await asyncio.sleep(0.2)  # connections are closed a moment later
    return held()
