"""What the server counts, in Prometheus' text format: counters, gauges and histograms, written by hand.

In: what the service and the HTTP side report. Out: the text of /metrics. For the event loop's thread.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smollm3.engine.stats import EngineStats
from smollm3.server.answering import Answering
from smollm3.server.cpu_time import around_model_seconds

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN = (0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_REQUEST = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
Labels = tuple[tuple[str, str], ...]


@dataclass
class Histogram:
    """Counts of observations up to each bound, and their sum."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, num: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += num
        self.total += value * num

    def lines(self, name: str, labels: Labels = ()) -> Iterable[str]:
        """Yield the samples: cumulative buckets, sum, count."""
        so_far = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            yield f"{name}_bucket{_labels((*labels, ('le', bound)))} {so_far}"
        yield f"{name}_sum{_labels(labels)} {_number(self.total)}"
        yield f"{name}_count{_labels(labels)} {so_far}"


class Metrics:
    """The counts of one server; `replica` is its name among others, a label of each sample."""

    def __init__(self, replica: str = "") -> None:
        self._replica = replica
        self.first_token = Histogram(_FIRST)
        self.per_token = Histogram(_TOKEN)
        self.durations: dict[tuple[str, str], Histogram] = {}  # by route and status
        self.errors: dict[str, int] = {}  # by OpenAI's code, or type
        self.num_prompt = 0
        self.num_generated = 0
        self.num_given_up = 0
        self.num_open = 0  # HTTP requests that are being answered

    def answered(self, answering: Answering) -> None:
        """Count a request to the model that has ended in some way."""
        self.num_prompt += len(answering.work.prompt_ids)
        self.num_generated += answering.num_generated
        self.num_given_up += answering.given_up
        if answering.first_seconds is not None:
            self.first_token.observe(answering.first_seconds)
        if answering.token_seconds is not None:
            self.per_token.observe(answering.token_seconds, max(answering.num_generated - 1, 1))

    def requested(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request that has ended; `route` is a path of the table, not what a client sent."""
        key = (route, str(status))
        if key not in self.durations:
            self.durations[key] = Histogram(_REQUEST)
        self.durations[key].observe(seconds)

    def failed(self, code: str) -> None:
        """Count an error that a client was told."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def text(self, *, up: bool, num_active: int, stats: EngineStats | None) -> str:
        """Return all metrics as text; `stats` is None after the engine's death."""
        lines = [
            *_gauge("up", "Whether the engine takes requests.", int(up)),
            *_gauge("requests_active", "Requests to the model that wait or run.", num_active),
            *_gauge("http_requests_open", "HTTP requests that are being answered.", self.num_open),
            *_counter("prompt_tokens", "Prompt tokens of requests that have ended.", self.num_prompt),
            *_counter("generated_tokens", "Tokens generated for them.", self.num_generated),
            *_counter("requests_given_up", "Requests that ended before their answer did.", self.num_given_up),
            *_head("errors_total", "counter", "Errors that clients were told, by code."),
            *(f"smollm3_errors_total{_labels((('code', c),))} {n}" for c, n in sorted(self.errors.items())),
            *_head("time_to_first_token_seconds", "histogram", "From queueing to the first token."),
            *self.first_token.lines("smollm3_time_to_first_token_seconds"),
            *_head("time_per_output_token_seconds", "histogram", "Between tokens of one answer, on average."),
            *self.per_token.lines("smollm3_time_per_output_token_seconds"),
            *_head("request_duration_seconds", "histogram", "HTTP requests, by route and status."),
        ]
        for (route, status), histogram in sorted(self.durations.items()):
            labels = (("route", route), ("status", status))
            lines += histogram.lines("smollm3_request_duration_seconds", labels)
        lines += [*_engine_lines(stats), *_process_lines()]
        if self._replica:
            lines = [_with_label(line, "replica", self._replica) for line in lines]
        return "\n".join(lines) + "\n"


def _engine_lines(stats: EngineStats | None) -> Iterable[str]:
    if stats is None:
        return
    yield from _gauge("samples_waiting", "Answers that wait for a place.", stats.num_waiting)
    yield from _gauge("samples_running", "Answers that run.", stats.num_running)
    yield from _gauge("cache_slots_open", "Sequences that have a place in the KV cache.", stats.num_open)
    yield from _gauge("cache_tokens_used", "Tokens of KV cache in use.", stats.cache_tokens_used)
    if stats.cache_tokens_total is not None:
        yield from _gauge("cache_tokens_capacity", "Tokens that fit it.", stats.cache_tokens_total)
        used = stats.cache_tokens_used / max(stats.cache_tokens_total, 1)
        yield from _gauge("cache_use_ratio", "Share of the KV cache in use.", used)
    hits = stats.prompt_ids_reused_total / max(stats.prompt_ids_total, 1)
    yield from _gauge("cache_hit_ratio", "Share of prompt tokens taken from the cache.", hits)
    for name, text, value in (
        ("cache_prompt_tokens", "Prompt tokens that were looked up in the cache.", stats.prompt_ids_total),
        ("cache_hit_tokens", "Those that were found there.", stats.prompt_ids_reused_total),
        ("preemptions", "Answers put back for want of memory.", stats.preemptions_total),
        ("drafted_tokens", "Tokens guessed by prompt lookup.", stats.drafted_total),
        ("accepted_tokens", "Guesses that were right.", stats.accepted_total),
        ("failed_samples", "Answers that failed in the engine.", stats.failed_total),
        ("engine_steps", "Steps of the engine.", stats.steps_total),
    ):
        yield from _counter(name, text, value)
    if (seconds := around_model_seconds(stats)) is not None:
        text = "Processor time of HTTP, text and scheduling: all but the model and the choice of tokens."
        yield from _counter("around_model_cpu_seconds", text, round(seconds, 6))


def _process_lines() -> Iterable[str]:
    """What the process holds, where /proc tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return
    facts: Mapping[str, str] = dict(
        line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line
    )
    memory = int(facts["VmRSS"].split()[0]) * 1024
    yield from _gauge("process_resident_memory_bytes", "Memory in use.", memory)
    yield from _gauge("process_threads", "Threads.", int(facts["Threads"]))
    num_files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    yield from _gauge("process_open_files", "Open file descriptors.", num_files)


def _head(name: str, kind: str, text: str) -> Iterable[str]:
    yield f"# HELP smollm3_{name} {text}"
    yield f"# TYPE smollm3_{name} {kind}"


def _gauge(name: str, text: str, value: float) -> Iterable[str]:
    yield from _head(name, "gauge", text)
    yield f"smollm3_{name} {_number(value)}"


def _counter(name: str, text: str, value: float) -> Iterable[str]:
    yield from _head(f"{name}_total", "counter", text)
    yield f"smollm3_{name}_total {value}"


def _number(value: float) -> str:
    return repr(round(value, 9))


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _with_label(line: str, name: str, value: str) -> str:
    """Return a sample's line with one label more; comments stay as they are."""
    if line.startswith("#"):
        return line
    end = line.index("{") if "{" in line else line.index(" ")
    rest = "," + line[end + 1 :] if line[end] == "{" else "}" + line[end:]
    return f'{line[:end]}{{{name}="{_escaped(value)}"{rest}'


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
