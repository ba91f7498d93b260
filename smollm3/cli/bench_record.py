"""A benchmark's numbers as one JSON object, and as lines for people.

In: rates as they were measured, and what a token reads. Out: plain dicts and text. Measures nothing.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smollm3.cli.bench_model import Traffic
from smollm3.cli.bench_options import BenchOptions
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.quantization.memory import memory_report


@dataclass
class Timings:
    """Ids per second of each repetition."""

    prefill: list[float] = field(default_factory=list)
    contexts: dict[int, list[float]] = field(default_factory=dict)
    batches: dict[int, list[float]] = field(default_factory=dict)
    # Decode at the prompt's context, with the bytes per second that memory was read at around it.
    beside_reads: list[tuple[float, float]] = field(default_factory=list)


def times(
    options: BenchOptions, timings: Timings, traffic: Traffic, load_s: float, age: float | None
) -> dict[str, Any]:
    """Return the medians, and every run behind them.

    The headline's share of the bandwidth is the median over runs, each against the reads around it: what else
    a machine does changes from second to second. Other contexts stand against the median of those reads.
    """
    reads = [read for _, read in timings.beside_reads]
    limit = statistics.median(reads) if reads else None
    contexts = [
        _context(context, rates, traffic.bytes_per_token(context, options.num_new), limit)
        for context, rates in timings.contexts.items()
    ]
    head = next(entry for entry in contexts if entry["context"] == options.prompt)
    if reads:
        shares = [rate * head["bytes_per_token"] / read for rate, read in timings.beside_reads]
        head["bandwidth_share"] = round(statistics.median(shares), 4)
    for entry in contexts:
        entry["of_prompt_rate"] = round(entry["tokens_per_s"] / head["tokens_per_s"], 4)
    return {
        "prompt": options.prompt,
        "new": options.num_new,
        "repeat": options.repeat,
        "load_s": round(load_s, 3),
        "first_token_s": None if age is None else round(age, 3),
        "prefill_tokens_per_s": _median(timings.prefill),
        "decode_tokens_per_s": head["tokens_per_s"],
        "bytes_per_token": head["bytes_per_token"],
        "weight_bytes_per_token": traffic.weights,
        "read_gb_per_s": limit and round(limit / 1e9, 3),
        "bandwidth_share": head["bandwidth_share"],
        "prefill_runs": _rounded(timings.prefill),
        "read_runs_gb_per_s": _rounded([read / 1e9 for read in reads]),
        "contexts": contexts,
        "batch_context": options.batch_context,
        "batches": [
            {"batch": batch, "tokens_per_s": _median(rates), "runs": _rounded(rates)}
            for batch, rates in timings.batches.items()
        ],
    }


def _context(context: int, rates: list[float], num_bytes: int, limit: float | None) -> dict[str, Any]:
    rate = _median(rates)
    return {
        "context": context,
        "tokens_per_s": rate,
        "bytes_per_token": num_bytes,
        "bandwidth_share": limit and round(rate * num_bytes / limit, 4),
        "runs": _rounded(rates),
    }


def memory(
    model: SmolLM3ForCausalLM, timings: Timings, options: BenchOptions, traffic: Traffic, peak: int | None
) -> dict[str, Any]:
    """Return the peak of the process beside the weights and the fullest cache there was, in GB."""
    one = max(timings.contexts) + options.num_new
    together = max(timings.batches) * traffic.cache_bytes(options.batch_context + options.num_new)
    return {
        "peak_rss_gb": None if peak is None else round(peak / 1e9, 4),
        "weights_gb": round(memory_report(model).total / 1e9, 4),
        "cache_gb": round(max(traffic.cache_bytes(one), together) / 1e9, 4),
    }


def tflops(timings: Timings, products: int) -> float:
    """Return the arithmetic that prefill did with the layers' matrices, in 10^12 per second."""
    return round(2 * products * statistics.median(timings.prefill) / 1e12, 4)


def headline(record: Mapping[str, Any]) -> str:
    """Return the line that says what is measured."""
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    kind = f"{record['scheme']}, head {record['head']}, cache of {record['kv_bits']} bits"
    line = f"model      {record['model']}: {kind}; {record['engine']} ({record['isa']}), {threads}"
    reason = record["not_native_because"]
    return line if reason is None else f"{line}; not native: {reason}"


def load_line(load_s: float, age: float | None) -> str:
    """Return the line about loading."""
    first = "" if age is None else f", first token {age:.2f} s after the start of the process"
    return f"load       {load_s:.2f} s{first}"


def rate_line(what: str, where: str, rates: Sequence[float]) -> str:
    """Return the line of one measurement: its median, and what the runs lay between."""
    spread = f"({min(rates):.1f} to {max(rates):.1f})" if len(rates) > 1 else ""
    return f"{what:<10} {where:<20} {statistics.median(rates):9.1f} tokens/s {spread}".rstrip()


def last_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the lines about memory and bandwidth."""
    peak = "unknown" if record["peak_rss_gb"] is None else f"{record['peak_rss_gb']:.2f} GB"
    lines = [
        f"memory     peak {peak}: weights {record['weights_gb']:.2f} GB, cache {record['cache_gb']:.2f} GB",
        f"prefill    {record['prefill_tflops']:.3f} TFLOP/s",
    ]
    per_token = f"a token at context {record['prompt']} reads {record['bytes_per_token'] / 1e6:,.1f} MB"
    if record["read_gb_per_s"] is None:
        return [*lines, f"bandwidth  not measured, too little memory is free; {per_token}"]
    share = f"decode at {record['decode_tokens_per_s']:.1f} tokens/s uses {record['bandwidth_share']:.0%}"
    return [*lines, f"bandwidth  {record['read_gb_per_s']:.1f} GB/s; {per_token}, {share}"]


def _median(rates: Sequence[float]) -> float:
    return round(statistics.median(rates), 3)


def _rounded(rates: Sequence[float]) -> list[float]:
    return [round(rate, 3) for rate in rates]
