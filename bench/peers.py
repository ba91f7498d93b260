"""smollm3 beside other engines: the same prompt, context and threads, by turns, each in its own process.

    python bench/peers.py smollm3=int4/ llama.cpp=model-q4_0.gguf transformers-nf4=model/ [--prompt 512]
        [--new 32] [--threads 2] [--batch 16] [--rounds 3] [--python llama.cpp=/path/to/python]

Entries are KIND=TARGET: smollm3 (anything `smollm3 bench` takes), smollm3-gguf (a GGUF file, its blocks as
they are), smollm3-nf4 (a model folder, through bitsandbytes), llama.cpp (a GGUF file), transformers (a model
folder or GGUF file), transformers-nf4 (a model folder, through bitsandbytes), openvino (an exported folder),
vllm (a model folder). The ratios are of the first entry to the others, each the median over the rounds. What
is not installed or fails is left out, and said. Ends in one line of JSON.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

OURS: dict[str, list[str]] = {
    "smollm3": [],
    "smollm3-gguf": ["--quantize", "gguf"],
    "smollm3-nf4": ["--quantize", "bitsandbytes-nf4"],
}
PEERS = ("llama.cpp", "transformers", "transformers-nf4", "openvino", "vllm")
MEASURES = ("prefill_tokens_per_s", "decode_tokens_per_s", "batch_tokens_per_s", "load_s", "peak_rss_gb")
RATES = MEASURES[:3]


def main() -> None:
    options = arguments()
    names = list(dict.fromkeys(options.entries))
    rounds: list[dict[str, dict[str, Any]]] = []
    left_out: dict[str, str] = {}
    for number in range(options.rounds):
        done: dict[str, dict[str, Any]] = {}
        for name in names if number % 2 == 0 else reversed(names):
            if name in left_out:
                continue
            record, failure = one_process(name, options)
            if record is None:
                left_out[name] = failure
                print(f"left out   {name}: {failure}", file=sys.stderr)
                continue
            done[name] = record
            figures = "  ".join(f"{measure} {record.get(measure)}" for measure in MEASURES)
            print(f"round {number + 1}    {name}: {figures}", file=sys.stderr)
        rounds.append(done)
    if names[0] in left_out:
        raise SystemExit(f"{names[0]} cannot be compared: {left_out[names[0]]}")
    print(json.dumps(summary(names, rounds, left_out, options)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entries", nargs="+", metavar="KIND=TARGET", type=entry)
    for name, default in (("prompt", 512), ("new", 32), ("threads", 2), ("rounds", 3), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch-context", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=1, help="runs within each process, of which the median")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that one process may take")
    parser.add_argument("--python", action="append", default=[], metavar="KIND=PATH", type=entry)
    parser.add_argument(
        "--smollm3-options", default="", metavar="WORDS", help="more options of smollm3 bench: '--kv-bits 8'"
    )
    return parser.parse_args()


def entry(text: str) -> str:
    kind, _, value = text.partition("=")
    if (kind not in OURS and kind not in PEERS) or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: give KIND=..., KIND one of {', '.join([*OURS, *PEERS])}")
    return text


def command(name: str, options: argparse.Namespace) -> list[str]:
    """Return the command that measures one entry."""
    kind, _, target = name.partition("=")
    pythons = dict(text.split("=", 1) for text in options.python)
    python = pythons.get(kind, sys.executable)
    counts = ["--prompt", options.prompt, "--new", options.new, "--threads", options.threads]
    counts += ["--repeat", options.repeat, "--batch-context", options.batch_context]
    if kind in OURS:
        words = [*OURS[kind], "--contexts", options.prompt, "--batches", options.batch, "--json"]
        words += options.smollm3_options.split()
        line = [python, "-m", "smollm3", "bench", target, *counts, *words]
    else:
        script = Path(__file__).with_name("peer_engines.py")
        line = [python, script, kind, target, *counts, "--batch", options.batch]
    return [str(word) for word in line]


def one_process(name: str, options: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """Run one entry; return its record, or None and why."""
    try:
        done = subprocess.run(
            command(name, options), capture_output=True, text=True, timeout=options.timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"took longer than {options.timeout:.0f} s"
    except OSError as error:
        return None, f"its Python cannot be run: {error}"
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        return None, said[-1]
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if name.partition("=")[0] in OURS:
        record["batch_tokens_per_s"] = record["batches"][-1]["tokens_per_s"]
        record["version"] = f"smollm3 {record['versions']['smollm3']} at {record['commit']}"
    return record, ""


def summary(
    names: list[str],
    rounds: list[dict[str, dict[str, Any]]],
    left_out: dict[str, str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return the medians over the rounds, and how many times as fast the first entry was."""
    measured = [name for name in names if name not in left_out]
    medians = {
        name: {measure: median([done[name].get(measure) for done in rounds]) for measure in MEASURES}
        | {"version": rounds[0][name]["version"]}
        for name in measured
    }
    first = measured[0]
    ratios = {
        name: {
            measure: median([ratio(done[first], done[name], measure) for done in rounds]) for measure in RATES
        }
        for name in measured[1:]
    }
    for key in ("engine", "isa", "scheme", "bandwidth_share", "read_gb_per_s", "bytes_per_token", "cpu"):
        if key in rounds[0][first]:
            medians[first][key] = rounds[-1][first][key]
    return {
        "bench": "peers",
        "machine": platform.machine(),
        **{
            key: getattr(options, key)
            for key in ("prompt", "new", "threads", "rounds", "batch", "batch_context")
        },
        "measured": medians,
        "times_as_fast": {"of": first, "than": ratios},
        "left_out": left_out,
        "command": " ".join(["python", "bench/peers.py", *sys.argv[1:]]),
    }


def ratio(ours: dict[str, Any], theirs: dict[str, Any], measure: str) -> float | None:
    mine, other = ours.get(measure), theirs.get(measure)
    return mine / other if mine and other else None


def median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 3) if known else None


if __name__ == "__main__":
    main()
