"""`smollm3 bench`: how fast a model loads, reads prompts and decodes on this CPU, and how near to its limit.

In: what to measure. Out: a line per measurement as it is made, and one JSON object. Random ids, medians, no
tokenizer and no sampling: the same work for every engine, and for the peers in bench/.
"""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from smollm3.cli.bench_options import BenchOptions, check
from smollm3.cli.terminal import escape_controls

if TYPE_CHECKING:
    from smollm3.cli.bench_record import Timings
    from smollm3.cli.bench_runs import Workload

Say = Callable[[str], None]


def run_bench(options: BenchOptions, *, as_json: bool) -> None:
    """Measure; lines go to stdout as they come, or to stderr with `as_json`, and then one JSON object."""
    screen = sys.stderr if as_json else sys.stdout
    record = measure(options, lambda line: print(escape_controls(line), file=screen, flush=True))
    if as_json:
        print(json.dumps(record), flush=True)


def measure(options: BenchOptions, say: Say) -> dict[str, Any]:
    """Load the model and measure what `options` ask for; `say` is given a line per measurement."""
    path, contexts = check(options)
    from smollm3.cli import bench_machine, bench_record
    from smollm3.cli.bench_model import products_per_token, traffic
    from smollm3.cli.bench_runs import Workload
    from smollm3.cli.bench_subject import FIRST_PROMPT, describe_subject, load_subject, settle

    subject = load_subject(options, path, contexts)
    record = describe_subject(subject, options)
    say(bench_record.headline(record))
    work = Workload(subject.runner, options.num_new)
    work.prefill(min(FIRST_PROMPT, subject.runner.context_size))
    age = bench_machine.process_age()
    say(bench_record.load_line(subject.load_s, age))
    record["settle_s"] = settle(subject)
    timings = time_all(work, options, contexts, say)
    peak = bench_machine.peak_rss()  # before the buffer of the read meter comes
    read_between_decodes(work, options, subject.threads, timings)
    reads = traffic(subject.model, subject.runner)
    record |= bench_record.times(options, timings, reads, subject.load_s, age)
    record |= bench_record.memory(subject.model, timings, options, reads, peak)
    record["prefill_tflops"] = bench_record.tflops(timings, products_per_token(subject.model))
    for line in bench_record.last_lines(record):
        say(line)
    return record


def time_all(work: "Workload", options: BenchOptions, contexts: tuple[int, ...], say: Say) -> "Timings":
    """Run everything that keeps time."""
    from smollm3.cli.bench_record import Timings, rate_line
    from smollm3.cli.bench_runs import decode_at, decode_together

    timings = Timings()
    timings.prefill += [work.prefill(options.prompt) for _ in range(options.repeat)]
    say(rate_line("prefill", f"{options.prompt} ids", timings.prefill))
    for context, rates in decode_at(work, contexts, options.repeat):
        timings.contexts[context] = rates
        say(rate_line("decode", f"context {context}", rates))
    for batch, rates in decode_together(work, options.batches, options.batch_context, options.repeat):
        timings.batches[batch] = rates
        say(rate_line("decode", f"{batch} x context {options.batch_context}", rates))
    return timings


def read_between_decodes(work: "Workload", options: BenchOptions, threads: int, timings: "Timings") -> None:
    """Decode by turns with reading memory: each run stands beside the faster of the reads around it."""
    from smollm3.cli import bench_machine

    if not bench_machine.memory_for_meter():
        return
    meter = bench_machine.ReadMeter(threads)
    slot = work.runner.open(options.prompt + options.num_new)
    work.fill(slot, 0, options.prompt)
    before = meter.measure()
    for _ in range(options.repeat):
        rate = work.decode([slot], options.prompt)
        after = meter.measure()
        timings.contexts[options.prompt].append(rate)
        timings.beside_reads.append((rate, max(before, after)))
        before = after
    work.runner.close(slot)
