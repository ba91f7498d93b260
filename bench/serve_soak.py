"""Many streams at once for a while, and the same requests alone: bench/serve.py's check under load.

Out: errors, answers that differ, how far memory drifts once the server is warm, descriptors and threads
before and after, and how the processor's time is shared between the model and everything around it.
"""

import argparse
import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from serve_client import Answer, Body, ask, metrics
from serve_measures import COMPLETIONS, Figures, completion, good, ids
from serve_process import Server

WARM = 0.25  # of the time; drift counts from there


@dataclass
class Watch:
    """Samples of the memory that the server holds, one a second."""

    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    async def run(self, server: Server) -> None:
        begin = time.perf_counter()
        while True:
            self.seconds.append(time.perf_counter() - begin)
            self.resident.append(server.resident())
            await asyncio.sleep(1)

    def drift(self, seconds: float) -> float:
        """Growth from the first tenth after warm-up to the last tenth before `seconds`, as a share."""
        values = [held for at, held in zip(self.seconds, self.resident, strict=True) if at <= seconds]
        values = values[int(WARM * len(values)) :]
        tenth = max(1, len(values) // 10)
        first, last = statistics.median(values[:tenth]), statistics.median(values[-tenth:])
        return round(last / first - 1, 5)


async def soak(server: Server, options: argparse.Namespace, draw: random.Random) -> Figures:
    """Run `streams` requests at a time for `seconds`, out of a pool whose answers alone are known."""
    pool = [_request(server, options, draw) for _ in range(options.pool)]
    alone = [await good(server, COMPLETIONS, body) for body in pool]
    used = await metrics(server.address)
    fds, threads = server.num_fds(), server.num_threads()
    cpu, begin = server.cpu_s(), time.perf_counter()
    watch = Watch()
    watching = asyncio.create_task(watch.run(server))
    seen = await _streams(server, options, pool, draw)
    passed, cpu = time.perf_counter() - begin, server.cpu_s() - cpu
    watching.cancel()
    now = await metrics(server.address)
    await asyncio.sleep(1)  # the last connections are closed a moment after their answers
    errors = [answer.error for _, answer in seen if answer.error is not None]
    good_ones = [(place, answer) for place, answer in seen if answer.error is None]
    wrong = [place for place, answer in good_ones if answer.same_as != alone[place].same_as]
    return {
        "streams": options.streams,
        "seconds": round(passed, 1),
        "answers": len(seen),
        "tokens_per_s": round(sum(answer.num_new for _, answer in good_ones) / passed, 1),
        "errors": len(errors),
        "error_examples": errors[:3],
        "different_answers": len(wrong),
        "rss_gb": round(watch.resident[-1] / 1e9, 3),
        "rss_drift": watch.drift(options.seconds),
        "fds": [fds, server.num_fds()],
        "threads": [threads, server.num_threads()],
        **_shares(used, now, cpu, passed),
    }


def _request(server: Server, options: argparse.Namespace, draw: random.Random) -> Body:
    """One of the pool: half greedy, half drawn with a seed; all lengths up to the limits."""
    prompt = ids(draw, draw.randint(8, options.soak_prompt))
    body = completion(server, prompt, draw.randint(4, options.soak_new), full=False)
    if draw.random() < 0.5:
        body |= {"temperature": draw.uniform(0.5, 1.2), "top_p": draw.uniform(0.8, 1.0)}
        body |= {"seed": draw.randrange(2**31)}
    return body


async def _streams(
    server: Server, options: argparse.Namespace, pool: list[Body], draw: random.Random
) -> list[tuple[int, Answer]]:
    seen: list[tuple[int, Answer]] = []
    until = time.perf_counter() + options.seconds
    salts = 0

    async def stream(own: random.Random) -> None:
        nonlocal salts
        while time.perf_counter() < until:
            place = own.randrange(len(pool))
            body = pool[place]
            if server.kind == "smollm3" and own.random() < options.fresh:
                salts += 1  # a past of its own: the prompt is taken in anew
                body = {**body, "cache_salt": f"soak-{salts}"}
            seen.append((place, await ask(server.address, COMPLETIONS, body)))

    await asyncio.gather(*(stream(random.Random(draw.random())) for _ in range(options.streams)))
    return seen


def _shares(before: dict[str, float], after: dict[str, float], cpu: float, passed: float) -> Figures:
    """Split the server's processor time; None where its metrics do not tell."""

    def grown(name: str) -> float | None:
        return after[name] - before[name] if name in after and name in before else None

    around = grown(AROUND)
    result: dict[str, Any] = {
        "cpu_s": round(cpu, 2),
        "cores_used": round(cpu / passed, 2),
        "around_model_share": around and cpu and round(around / cpu, 4),
    }
    for name in COUNTS:
        result[name] = grown(f"smollm3_{name}")
    return result


AROUND = "smollm3_around_model_cpu_seconds_total"
COUNTS = (
    "cache_prompt_tokens_total", "cache_hit_tokens_total", "preemptions_total", "drafted_tokens_total",
    "accepted_tokens_total", "engine_steps_total",
)  # fmt: skip
