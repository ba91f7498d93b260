"""What bench/serve.py measures on a running server: each function sends requests and returns plain figures.

Prompts are random ids on /v1/completions, so a model without trained weights will do; `lookup` alone needs
words. Every id drawn is below 40,000, the smallest vocabulary here has 49,152.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any

from serve_client import Answer, Body, ask, metrics
from serve_process import MeasureError, Server

NUM_IDS = 40_000
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
Figures = dict[str, Any]


def ids(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(100, NUM_IDS) for _ in range(count)]


def completion(server: Server, prompt: list[int], num_new: int, *, full: bool = True) -> Body:
    """Return a request for `num_new` ids; `full` keeps an end-of-text id from coming before."""
    body: Body = {"model": server.model, "prompt": prompt, "max_tokens": num_new, "temperature": 0.0}
    if full and server.kind == "smollm3":  # OpenAI's own words for it
        body["logit_bias"] = {str(token_id): -100 for token_id in server.eos_ids}
    elif full:
        body["ignore_eos"] = True
    return body


async def good(server: Server, route: str, body: Body) -> Answer:
    answer = await ask(server.address, route, body)
    if answer.error is not None:
        raise MeasureError(f"answers {answer.error}")
    return answer


async def throughput(server: Server, options: argparse.Namespace, draw: random.Random) -> Figures:
    """Several new prompts at once, `prompt` ids in and `new` out; ids out per second of the whole batch."""
    runs = []
    firsts: list[float] = []
    warm = [completion(server, ids(draw, options.prompt), 4) for _ in range(options.slots)]
    await asyncio.gather(*(good(server, COMPLETIONS, body) for body in warm))
    for _ in range(options.repeat):
        bodies = [completion(server, ids(draw, options.prompt), options.new) for _ in range(options.slots)]
        begin = time.perf_counter()
        answers = await asyncio.gather(*(good(server, COMPLETIONS, body) for body in bodies))
        taken = time.perf_counter() - begin
        if short := [answer.num_new for answer in answers if answer.num_new != options.new]:
            raise MeasureError(f"answers of {short} tokens, {options.new} were asked for")
        runs.append(options.slots * options.new / taken)
        firsts += [answer.first_s for answer in answers if answer.first_s is not None]
    return {
        "tokens_per_s": round(statistics.median(runs), 2),
        "runs": [round(run, 2) for run in runs],
        "first_token_s": round(statistics.median(firsts), 3),
        "last_first_token_s": round(max(firsts), 3),
    }


async def beside_prefill(server: Server, options: argparse.Namespace, draw: random.Random) -> Figures:
    """Time to the first token of a short prompt while a long one is taken in, also in steps of the engine.

    A step's time is that of the long prompt alone over the steps it took, as /metrics counts them.
    """
    short_runs, alone_runs, long_runs, step_runs = [], [], [], []
    for _ in range(options.repeat):
        alone = await good(server, COMPLETIONS, completion(server, ids(draw, 16), 2))
        before = await steps(server)
        whole = await good(server, COMPLETIONS, completion(server, ids(draw, options.long), 1))
        after = await steps(server)
        assert whole.first_s is not None
        if before is not None and after is not None and after > before:
            step_runs.append(whole.first_s / (after - before))
        long = asyncio.create_task(good(server, COMPLETIONS, completion(server, ids(draw, options.long), 1)))
        await asyncio.sleep(whole.first_s * 0.3)
        if long.done():
            raise MeasureError("the long prompt was taken in before the short one could be sent")
        short = await good(server, COMPLETIONS, completion(server, ids(draw, 16), 2))
        await long
        short_runs.append(short.first_s)
        alone_runs.append(alone.first_s)
        long_runs.append(whole.first_s)
    step = statistics.median(step_runs) if step_runs else None
    return {
        "short_first_token_s": _median(short_runs),
        "short_alone_first_token_s": _median(alone_runs),
        "long_first_token_s": _median(long_runs),
        "step_s": _round(step),
        "short_in_steps": step and round((_median(short_runs) or 0.0) / step, 2),
    }


async def waits(server: Server, options: argparse.Namespace, draw: random.Random) -> Figures:
    """A stream's waits from token to token: alone, and while a prompt of `system` ids is taken in."""
    alone, longest, medians, taken = [], [], [], []
    for _ in range(options.repeat):
        short = await good(server, COMPLETIONS, completion(server, ids(draw, 16), 8))
        assert short.first_s is not None
        alone.append((short.total_s - short.first_s) / 7)
        stream_at = time.perf_counter()
        stream = asyncio.create_task(
            good(server, COMPLETIONS, completion(server, ids(draw, 16), 2 * options.new))
        )
        await asyncio.sleep(short.first_s + 3 * alone[-1])
        long_at = time.perf_counter()
        long = await good(server, COMPLETIONS, completion(server, ids(draw, options.system), 1))
        begin, end = long_at - stream_at, long_at - stream_at + long.total_s
        stamps = (await stream).stamps
        if end > stamps[-1]:
            raise MeasureError("the stream ended before the long prompt was taken in: give more --new")
        beside = [b - a for a, b in itertools.pairwise(stamps) if b > begin and a < end]
        longest.append(max(beside))
        medians.append(statistics.median(beside))
        taken.append(long.total_s)
    return {
        "alone_s": _round(statistics.median(alone)),
        "beside_s": _round(statistics.median(medians)),
        "longest_s": _round(max(longest)),
        "long_s": _round(statistics.median(taken)),
    }


async def steps(server: Server) -> float | None:
    found = await metrics(server.address) if server.kind == "smollm3" else {}
    return next((value for name, value in found.items() if name.endswith("steps_total")), None)


async def repeated(server: Server, options: argparse.Namespace, draw: random.Random) -> Figures:
    """Time to the first token after a long system prompt: the first request with it, and the second."""
    first_runs, second_runs = [], []
    for _ in range(options.repeat):
        system = ids(draw, options.system)
        first = await good(server, COMPLETIONS, completion(server, system + ids(draw, 16), 2))
        second = await good(server, COMPLETIONS, completion(server, system + ids(draw, 16), 2))
        first_runs.append(first.first_s)
        second_runs.append(second.first_s)
    first_s, second_s = _median(first_runs), _median(second_runs)
    return {
        "first_s": first_s,
        "second_s": second_s,
        "times_shorter": first_s and second_s and round(first_s / second_s, 2),
    }


TEXT = """\
The harbour of Brunnvik was built in 1874, after two winters in which the ice had crushed the old \
pier. The town had eleven hundred people then, most of whom lived from herring. The engineer, Karin \
Holm, had learned her trade in Rotterdam, and she insisted on stone where the council had asked for \
timber. It cost three times as much and took four years. When the great storm of 1881 came in from \
the west, every wooden pier along the coast was lost, and the one at Brunnvik stood. The council put \
up a plaque with her name on it, and spelled it wrong. It is still there, between the ice house and \
the fish market, and every spring somebody mends the letter with chalk. In 1902 the railway reached \
the town, and the herring went inland by train. The boats grew larger, then fewer, and by 1960 there \
were nine of them left. Today the harbour holds sailing boats from June to September, and a small \
ferry crosses to the islands twice a day. The stone pier has not been repaired since it was built."""
EDITS = ("Brunnvik", "Askholm"), ("1881", "1883"), ("herring", "salmon")
CHATS = (
    "Explain why the sky is blue to a child.",
    "Write a short story about a lighthouse keeper and a whale.",
    "Give me five ideas for a rainy Sunday.",
    "What is the difference between a virus and a bacterium?",
)


GREEDY: Body = {"temperature": 0.0}
DRAWN: Body = {"temperature": 0.6, "top_p": 0.95}  # what SmolLM3's page asks for


async def lookup(server: Server, options: argparse.Namespace, draw: random.Random) -> Figures:
    """The same answers with and without prompt lookup, by turns: a text to edit, and two kinds of chat."""
    edits = [
        f"Copy the following text word for word, but write {new} wherever it says {old}. "
        f"Answer with the text alone.\n\n{TEXT}"
        for old, new in EDITS
    ]
    return {
        "edit": await _by_turns(server, options, edits, options.edit_new),
        "chat": await _by_turns(server, options, list(CHATS), options.new),
        "chat_drawn": await _by_turns(server, options, list(CHATS), options.new, DRAWN),
    }


async def _by_turns(
    server: Server, options: argparse.Namespace, questions: list[str], num_new: int, choice: Body = GREEDY
) -> Figures:
    rates: dict[bool, list[float]] = {False: [], True: []}
    ratios: list[float] = []
    same = True
    for question in questions:
        body: Body = {"model": server.model, "messages": [{"role": "user", "content": question}]}
        body |= {**choice, "max_tokens": num_new}
        await good(server, CHAT, {**body, "max_tokens": 1})  # the prompt is in the cache from here on
        for turn in range(options.repeat):
            found: dict[bool, float] = {}
            texts = {}
            for on in (False, True) if turn % 2 == 0 else (True, False):
                answer = await good(server, CHAT, {**body, "seed": turn, "prompt_lookup": on})
                found[on] = _decode_rate(answer)
                texts[on] = answer.same_as
            same = same and texts[False] == texts[True]
            for on, rate in found.items():
                rates[on].append(rate)
            ratios.append(found[True] / found[False])
    return {
        "off_tokens_per_s": round(statistics.median(rates[False]), 2),
        "on_tokens_per_s": round(statistics.median(rates[True]), 2),
        "times_as_fast": round(statistics.median(ratios), 3),
        "identical": same,
    }


def _decode_rate(answer: Answer) -> float:
    assert answer.first_s is not None
    return max(answer.num_new - 1, 1) / max(answer.total_s - answer.first_s, 1e-9)


async def ready(server: Server, options: argparse.Namespace, draw: random.Random) -> Figures:
    """From the start of the process to /health, and to the first token of a first answer."""
    answer = await good(server, COMPLETIONS, completion(server, ids(draw, 16), 1))
    return {
        "ready_s": round(server.ready_s, 3),
        "first_token_s": round(server.ready_s + (answer.first_s or 0.0), 3),
        "rss_gb": round(server.resident() / 1e9, 3),
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _round(statistics.median(known)) if known else None


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


Measure = Callable[[Server, argparse.Namespace, random.Random], Coroutine[Any, Any, Figures]]
MEASURES: dict[str, Measure] = {
    "ready": ready,
    "throughput": throughput,
    "prefill": beside_prefill,
    "waits": waits,
    "repeat": repeated,
    "lookup": lookup,
}
