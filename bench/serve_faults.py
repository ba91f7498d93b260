"""Faulty clients, drawn at random, against a server of its own, for as long as one likes.

    python bench/serve_faults.py smollm2-135m --seconds 3600 --seed 1
    python bench/serve_faults.py smollm2-135m --seed 1 --client 4711     # one of them again, alone

Clients leave, reset, trickle, stall, lie, smuggle, come in crowds and ask for what explodes; honest ones
among them must get the answers that they got alone. Every --checkpoint seconds all pause, and the server must
hold nothing any more: no request, sample, slot, KV block, descriptor or thread; nor may memory grow once
warm. A fault is printed with what repeats it. Ends in one line of JSON; the exit code is 1 after a fault.
"""

import argparse
import asyncio
import itertools
import json
import random
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import faulty_bodies
import faulty_framing
import faulty_leaving
from faulty_client import Client, Kind
from faulty_honest import Honest, questions
from faulty_server import Held, Server, serving
from faulty_wire import FaultError

from smollm3.cli.bench_machine import commit
from smollm3.cli.machine import describe_cpu

KINDS: dict[str, Kind] = {**faulty_framing.KINDS, **faulty_bodies.KINDS, **faulty_leaving.KINDS}
CLIENT_SECONDS = 240.0  # for anything that one client does
MAX_FAULTS = 25  # then it is enough
WARM, DRIFT = 0.25, 0.05  # memory: from this share of the checkpoints on, and the most that it may grow
MIN_CHECKPOINTS = 12  # before memory is judged: it still fills up in the first minutes

COUNTS = ("preemptions_total", "requests_given_up_total", "failed_samples_total", "generated_tokens_total",
          "cache_prompt_tokens_total", "cache_hit_tokens_total")  # fmt: skip


@dataclass
class Run:
    """What has happened so far."""

    server: Server
    honest: Honest
    options: argparse.Namespace
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    faults: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    held: list[Held] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)  # the server's own

    def fault(self, text: str) -> None:
        self.faults.append(text)
        print(f"FAULT {text}", file=sys.stderr, flush=True)

    @property
    def over(self) -> bool:
        return len(self.faults) >= MAX_FAULTS or self.server.process.poll() is not None


def main() -> int:
    options = arguments()
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    with serving(options) as server:
        run = asyncio.run(_run(server, options))
        try:
            server.stop()
        except FaultError as fault:
            run.fault(f"at the end: {fault}")
    print(json.dumps(summary(run, time.monotonic() - begin)))
    return 1 if run.faults else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="anything that smollm3 serve takes")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long faulty clients come")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn")
    parser.add_argument("--clients", type=int, default=8, help="faulty ones at once")
    parser.add_argument("--honest", type=int, default=2, help="honest ones at once")
    parser.add_argument("--pool", type=int, default=32, help="different honest requests")
    parser.add_argument("--checkpoint", type=float, default=30.0, help="seconds from one to the next")
    parser.add_argument(
        "--rest", type=float, default=15.0, help="seconds in which the server must come to rest"
    )
    parser.add_argument("--wait", type=float, default=60.0, help="seconds for a reply that must come")
    parser.add_argument("--threads", type=int, default=2, help="threads of the server's engine")
    parser.add_argument("--kv-memory", default="26MB", help="of the server")
    parser.add_argument("--keep-template", action="store_true", help="not SmolLM3's, with tools and thoughts")
    parser.add_argument("--kinds", default="", help="only these, comma-separated")
    parser.add_argument("--client", type=int, help="run the client of this number alone, and nothing else")
    options = parser.parse_args()
    if unknown := [name for name in options.kinds.split(",") if name and name not in KINDS]:
        parser.error(f"--kinds {', '.join(unknown)}: choose from {', '.join(KINDS)}")
    return options


async def _run(server: Server, options: argparse.Namespace) -> Run:
    draw = random.Random(f"{options.seed}/honest")
    honest = Honest(server.target, questions(server.target, draw, options.pool))
    run = Run(server, honest, options)
    if options.client is not None:
        await one_faulty(run, options.client)
        return run
    await honest.learn()
    server.at_start = await server.at_rest(options.rest)
    until = time.monotonic() + options.seconds
    while time.monotonic() < until and not run.over:
        await phase(run, min(until, time.monotonic() + options.checkpoint))
        await checkpoint(run)
    if len(run.held) >= MIN_CHECKPOINTS and drift(run.held) > DRIFT:
        run.fault(f"memory has grown by {drift(run.held):.1%} after warm-up")
    if not run.over:
        run.counts = await server.metrics()
    return run


async def phase(run: Run, until: float) -> None:
    """Let clients come until then, and wait for the last of them."""

    async def faulty() -> None:
        while time.monotonic() < until and not run.over:
            await one_faulty(run, next(run.numbers))

    async def honest(draw: random.Random) -> None:
        while time.monotonic() < until and not run.over:
            try:
                await run.honest.ask(draw)
            except (FaultError, TimeoutError, OSError) as error:
                run.fault(f"honest: {type(error).__name__}: {error}")
                await asyncio.sleep(1)

    lanes = [faulty() for _ in range(run.options.clients)]
    draws = [random.Random(f"{run.options.seed}/{until}/{lane}") for lane in range(run.options.honest)]
    await asyncio.gather(*lanes, *map(honest, draws))


async def one_faulty(run: Run, number: int) -> None:
    """Run the faulty client of a number; what kind it is and what it does follow from the seed."""
    options = run.options
    draw = random.Random(f"{options.seed}/{number}")
    names = options.kinds.split(",") if options.kinds else list(KINDS)
    (name,) = draw.choices(names, [KINDS[name].weight for name in names])
    client = Client(run.server.target, draw, number)
    run.kinds[name] += 1
    try:
        async with asyncio.timeout(CLIENT_SECONDS):
            await KINDS[name].run(client)
    except (FaultError, TimeoutError, OSError) as error:
        sent = [bytes(wire.sent[:1500]) for wire in client.wires[-3:]]
        again = f"--seed {options.seed} --client {number}" + (
            f" --kinds {options.kinds}" if options.kinds else ""
        )
        run.fault(f"{name} ({again}): {type(error).__name__}: {error}; sent {sent}")
    finally:
        client.close()
    run.statuses.update(client.statuses)


async def checkpoint(run: Run) -> None:
    """See that the server holds nothing any more and that its log is clean."""
    try:
        held = await run.server.at_rest(run.options.rest)
        run.held.append(held)
        run.server.check_log()
    except (FaultError, TimeoutError, OSError) as error:
        run.fault(f"at rest, after client {sum(run.kinds.values())}: {type(error).__name__}: {error}")
        return
    print(
        f"{sum(run.kinds.values())} faulty clients, {run.honest.asked} honest answers, "
        f"{len(run.faults)} faults; {held.fds} descriptors, {held.threads} threads, "
        f"{held.resident // 10**6} MB",
        file=sys.stderr,
        flush=True,
    )


def drift(held: list[Held]) -> float:
    """Return the growth of memory after warm-up, as a share: the last quarter's median to the first's."""
    values = [each.resident for each in held][int(WARM * len(held)) :]
    part = max(1, len(values) // 4)
    return statistics.median(values[-part:]) / statistics.median(values[:part]) - 1


def summary(run: Run, seconds: float) -> dict[str, Any]:
    held = run.held
    return {
        "bench": "serve_faults",
        "cpu": describe_cpu(),
        "commit": commit(),
        "model": run.options.model,
        "seed": run.options.seed,
        "seconds": round(seconds, 1),
        "faults": len(run.faults),
        "fault_examples": [fault[:300] for fault in run.faults[:3]],
        "faulty_clients": sum(run.kinds.values()),
        "kinds": dict(sorted(run.kinds.items())),
        "statuses": {str(status): num for status, num in sorted(run.statuses.items())},
        "honest_answers": run.honest.asked,
        "honest_refused": run.honest.refused,
        "checkpoints": len(held),
        "fds": [each.fds for each in (held[0], held[-1])] if held else [],
        "threads": [each.threads for each in (held[0], held[-1])] if held else [],
        "rss_mb": [round(each.resident / 1e6, 1) for each in held],
        "rss_drift": round(drift(held), 4) if held else None,
        "log": run.server.levels,
        **{name: run.counts.get(name) for name in COUNTS},
    }


if __name__ == "__main__":
    sys.exit(main())
