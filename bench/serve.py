"""Servers side by side: the same requests to each, by turns, each server in its own process.

    python bench/serve.py smollm3=int4/ llama.cpp=model-q4_0.gguf vllm=model/ [--measure throughput,repeat]
        [--rounds 3] [--threads 2] [--slots 16] [--python vllm=/path/to/python]

Entries are KIND=TARGET: smollm3 (anything `smollm3 serve` takes), llama.cpp (a GGUF file, by the server in
the package xllamacpp), llama-server (a GGUF file, by llama.cpp's own binary: --python llama-server=PATH),
vllm (a model folder). Measures: ready, throughput, prefill, waits, repeat for all; soak and lookup for
smollm3 alone. Ratios are of the first entry to the others, each the median over the rounds. What is not
installed or fails is left out, and said. Ends in one line of JSON.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
from typing import Any

from serve_measures import MEASURES, Figures
from serve_process import KINDS, MeasureError, serving, version
from serve_soak import soak

from smollm3.cli.bench_machine import commit
from smollm3.cli.machine import describe_cpu, installed_version

ALL = {**MEASURES, "soak": soak}
OURS_ALONE = ("soak", "lookup")
NUMBERS: dict[str, tuple[float, str]] = {
    "rounds": (1, "turns of all servers"),
    "repeat": (3, "runs of each measure within a turn, of which the median"),
    "threads": (2, "threads of each server"),
    "slots": (16, "requests at once of throughput; slots of llama.cpp"),
    "context": (8192, "most ids of one sequence"),
    "prompt": (128, "ids in, of throughput"),
    "new": (128, "ids out, of throughput and of free chat; half of those of a stream that waits"),
    "long": (4096, "ids of the prompt that is being taken in"),
    "system": (2048, "ids of the system prompt that is repeated, and of the prompt that a stream waits for"),
    "edit_new": (320, "ids out at most, of the text to edit"),
    "streams": (64, "requests at once of soak"),
    "seconds": (120.0, "how long soak sends new requests"),
    "pool": (64, "different requests of soak"),
    "soak_prompt": (256, "longest prompt of soak"),
    "soak_new": (96, "longest answer of soak"),
    "fresh": (0.5, "share of soak's requests to smollm3 that may not use the cache's pasts"),
    "seed": (0, "of everything that is drawn"),
}


def main() -> None:
    options = arguments()
    names = list(dict.fromkeys(options.entries))
    rounds: list[dict[str, Figures]] = []
    left_out: dict[str, str] = {}
    for number in range(options.rounds):
        done: dict[str, Figures] = {}
        for name in names if number % 2 == 0 else reversed(names):
            if name in left_out:
                continue
            try:
                done[name] = measured(name, number, options)
            except MeasureError as error:
                left_out[name] = str(error)
                print(f"left out   {name}: {error}", file=sys.stderr)
        rounds.append(done)
    print(json.dumps(summary([name for name in names if name not in left_out], rounds, left_out, options)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entries", nargs="+", metavar="KIND=TARGET", type=entry)
    parser.add_argument("--measure", type=measures, default=list(MEASURES), metavar=",".join(ALL))
    for name, (default, words) in NUMBERS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"{words} (default: {default})")
    parser.add_argument("--python", action="append", default=[], metavar="KIND=PATH", type=entry)
    parser.add_argument(
        "--smollm3-options", default="", metavar="WORDS", help="more options of smollm3 serve: '--kv-bits 8'"
    )
    return parser.parse_args()


def entry(text: str) -> str:
    kind, _, value = text.partition("=")
    if kind not in KINDS or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: give KIND=..., KIND one of {', '.join(KINDS)}")
    return text


def measures(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in ALL]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(ALL)}")
    return names


def measured(name: str, number: int, options: argparse.Namespace) -> Figures:
    """Start one server, measure it, stop it. Raises MeasureError where a measure fails."""
    kind, _, target = name.partition("=")
    figures: Figures = {}
    wanted = [measure for measure in options.measure if kind == "smollm3" or measure not in OURS_ALONE]
    with serving(kind, target, options) as server:
        for measure in wanted:
            draw = random.Random(f"{options.seed}/{number}/{measure}")
            figures[measure] = asyncio.run(ALL[measure](server, options, draw))
            print(f"round {number + 1}    {name}: {measure} {json.dumps(figures[measure])}", file=sys.stderr)
    return figures


def summary(
    names: list[str], rounds: list[dict[str, Figures]], left_out: dict[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """Return the medians over the rounds, and how many times as fast the first entry was."""
    complete = [done for done in rounds if all(name in done for name in names)]
    medians = {name: combined([done[name] for done in complete]) for name in names}
    ratios = {
        name: statistics.median(
            done[names[0]]["throughput"]["tokens_per_s"] / done[name]["throughput"]["tokens_per_s"]
            for done in complete
        )
        for name in names[1:]
        if "throughput" in options.measure
    }
    return {
        "bench": "serve",
        "machine": platform.machine(),
        "cpu": describe_cpu(),
        "commit": commit(),
        "versions": {"torch": installed_version("torch")}
        | {name: version(name.partition("=")[0], options) for name in names},
        **{name: getattr(options, name) for name in NUMBERS},
        "measured": medians,
        "throughput_times_as_fast": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "left_out": left_out,
        "command": " ".join(["python", "bench/serve.py", *sys.argv[1:]]),
    }


def combined(runs: list[Any]) -> Any:
    """Return the median of numbers and the worst of flags, field by field; anything else as it first was."""
    first = runs[0]
    if isinstance(first, dict):
        return {key: combined([run[key] for run in runs]) for key in first}
    if isinstance(first, bool):
        return all(runs)
    if isinstance(first, int | float) and not any(run is None for run in runs):
        return round(statistics.median(runs), 5)
    return first


if __name__ == "__main__":
    main()
