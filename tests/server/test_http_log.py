"""The log and /metrics: whole lines, whatever is in them; counts that agree with what was done."""

import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from raw_clients import exchange, request, wait_until
from serving import Running

from smollm3.server.log import FLUSH_SECONDS, LineFormatter, LineHandler, LogFormat, note, setup_logging
from smollm3.server.metrics import Histogram

HOSTILE = 'a\r\nFAKE: {"level": "error"}\n\x1b[2J\x9b31m\x7f\u2028\u202e\x00 "quoted" \\'
COMPLETION = {"model": "tiny", "prompt": "The capital", "max_tokens": 5, "logit_bias": {"3": -100}}


class Lines(io.StringIO):
    """What a handler wrote, and all of it."""

    handler: logging.Handler

    def getvalue(self) -> str:
        self.handler.flush()
        return super().getvalue()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the server logs as JSON."""
    stream = Lines()
    loggers = [logging.getLogger(name) for name in ("smollm3", "uvicorn.error", "asyncio")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    stream.handler = setup_logging("json", stream)
    yield stream
    stream.handler.flush()
    stream.handler.close()
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def records(lines: io.StringIO, message: str, num: int = 1) -> list[dict[str, Any]]:
    """The records of a message, at least `num`: a request's comes after its reply."""

    def found() -> list[dict[str, Any]]:
        parsed = [json.loads(line) for line in lines.getvalue().splitlines()]
        return [record for record in parsed if record["message"] == message]

    wait_until(lambda: len(found()) >= num)
    return found()


def test_a_request_is_one_line_with_its_counts(tiny_server: Running, lines: io.StringIO) -> None:
    with tiny_server.client() as client:
        reply = client.post("/v1/completions", json=COMPLETION, headers={"X-Request-Id": "mine-1"})
    usage = reply.json()["usage"]
    (record,) = records(lines, "request")
    assert record["request_id"] == "mine-1"
    assert (record["method"], record["path"], record["status"]) == ("POST", "/v1/completions", 200)
    assert record["prompt_tokens"] == usage["prompt_tokens"]
    assert record["generated_tokens"] == usage["completion_tokens"] == 5
    assert 0 < record["first_byte_seconds"] <= record["seconds"]


def test_prompts_are_logged_only_when_asked_for(
    tiny_server: Running, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny_server.client() as client:
        client.post("/v1/completions", json=COMPLETION)
        assert "The capital" not in lines.getvalue()
        monkeypatch.setattr(tiny_server.service, "log_prompts", True)
        client.post("/v1/completions", json=COMPLETION)
    assert records(lines, "prompt")[0]["prompt"] == "The capital"


def test_an_error_is_logged_with_its_code(tiny_server: Running, lines: io.StringIO) -> None:
    with tiny_server.client() as client:
        client.post("/v1/completions", json={**COMPLETION, "max_tokens": 5000})
        client.get("/nowhere")
    assert [(r["status"], r["error"]) for r in records(lines, "request", 2)] == [
        (400, "context_length_exceeded"),
        (404, "not_found"),
    ]


def test_case_52_what_a_client_sends_never_makes_a_line(tiny_server: Running, lines: io.StringIO) -> None:
    for path in ("/%0d%0aFAKE:%20line", "/%1b%5b2J", "/%00", "/%E2%80%A8", "/" + "x" * 5000):
        exchange(tiny_server.port, request("GET", path))
    exchange(tiny_server.port, request("GET", "/health", X_Request_Id="fake\x1b[2J"))
    with tiny_server.client() as client:
        client.post("/v1/completions", json={**COMPLETION, "model": HOSTILE})
    assert len(records(lines, "request", 7)) == 7
    text = lines.getvalue()
    assert text.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert len(text.splitlines()) == 7
    assert max(map(len, text.splitlines())) < 1000


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_record_is_one_line_of_plain_characters(form: LogFormat) -> None:
    record = logging.LogRecord("smollm3", logging.INFO, "f", 1, "%s", (HOSTILE,), None)
    record.smollm3_fields = {"path": HOSTILE, "list": [HOSTILE], "number": 1.5}
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record.exc_info = sys.exc_info()
    line = LineFormatter(form).format(record)
    assert line.isascii()
    assert line.isprintable()
    if form == "json":
        parsed = json.loads(line)
        assert parsed["message"] == parsed["path"] == HOSTILE
        assert "ValueError" in parsed["exception"]


def test_fields_that_are_none_are_left_out() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("smollm3_test_note")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("text"))
    logger.addHandler(handler)
    note(logger, "told", here=1, absent=None)
    logger.removeHandler(handler)
    assert re.fullmatch(r"\S+ info: told here=1\n", stream.getvalue())


def read_records(reader: int) -> list[dict[str, Any]]:
    with os.fdopen(reader) as lines:
        return [json.loads(line) for line in lines]


def record_of(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelname": "INFO"})


@pytest.mark.parametrize("blocking", [True, False])
def test_a_log_that_nobody_reads_holds_nobody_up_and_tells_what_it_left_out(blocking: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    with ThreadPoolExecutor(1) as pool, os.fdopen(writer, "w") as stream:
        handler = LineHandler(stream, max_characters=200_000)
        handler.setFormatter(LineFormatter("json"))
        began = time.monotonic()
        for idx in range(3000):
            handler.handle(record_of(f"{idx} {HOSTILE}"))
        assert time.monotonic() - began < 2
        began = time.monotonic()
        handler.flush()
        assert FLUSH_SECONDS <= time.monotonic() - began < FLUSH_SECONDS + 1
        found = pool.submit(read_records, reader)
        wait_until(lambda: not handler._num_waiting)
        handler.handle(record_of("at last"))
        handler.flush()
        handler.close()
        handler.handle(record_of("too late"))
        stream.close()
        *first, last = found.result()
    numbers = [int(record["message"].split()[0]) for record in first if "records" not in record]
    assert numbers == sorted(set(numbers))
    assert 300 < len(numbers) < 2900
    assert sum(record.get("records", 0) for record in first) == 3000 - len(numbers)
    assert last["message"] == "at last"


def test_a_log_whose_reader_is_gone_harms_nobody() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        handler = LineHandler(stream)
        os.close(reader)
        handler.handle(record_of("lost"))
        began = time.monotonic()
        handler.flush()
        handler.close()
        assert time.monotonic() - began < FLUSH_SECONDS


# /metrics

LINE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"(?P<labels>\{(?:[a-zA-Z_][a-zA-Z0-9_]*=\"(?:[^\"\\\n]|\\[\\\"n])*\",?)*\})?"
    r" (?P<value>[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|Inf|NaN))"
)


def scrape(text: str) -> dict[str, float]:
    """Parse and check the text format: HELP and TYPE before a family's samples, each family in one piece."""
    assert text.endswith("\n")
    values: dict[str, float] = {}
    kinds: dict[str, str] = {}
    family = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in kinds, f"{family} comes twice"
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name == family
            assert kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
        else:
            match = LINE.fullmatch(line)
            assert match, line
            name = match["name"]
            suffixes = ("", "_bucket", "_sum", "_count") if kinds[family] == "histogram" else ("",)
            assert name in [family + suffix for suffix in suffixes], line
            assert name.startswith("smollm3_")
            assert kinds[family] != "counter" or name.endswith("_total")
            key = name + (match["labels"] or "")
            assert key not in values
            values[key] = float(match["value"])
    return values


def test_metrics_are_in_prometheus_format_and_count(tiny_server: Running) -> None:
    with tiny_server.client() as client:
        before = scrape(client.get("/metrics").text)
        for _ in range(3):
            assert client.post("/v1/completions", json=COMPLETION).status_code == 200
        client.get("/no/such/path")
        client.get("/no/such/path/either")
        reply = client.get("/metrics")
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    after = scrape(reply.text)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert after["smollm3_up"] == 1
    assert grown("smollm3_generated_tokens_total") == 15
    assert grown("smollm3_prompt_tokens_total") > 0
    assert grown("smollm3_time_to_first_token_seconds_count") == 3
    assert grown("smollm3_time_per_output_token_seconds_count") == 12
    route = '{route="/v1/completions",status="200"}'
    assert grown(f"smollm3_request_duration_seconds_count{route}") == 3
    assert grown('smollm3_request_duration_seconds_count{route="other",status="404"}') == 2
    assert grown('smollm3_errors_total{code="not_found"}') == 2
    assert after["smollm3_samples_running"] == after["smollm3_samples_waiting"] == 0
    for name in ("preemptions", "drafted_tokens", "accepted_tokens", "cache_hit_tokens", "engine_steps"):
        assert f"smollm3_{name}_total" in after
    assert "/no/such" not in reply.text


def test_histograms_are_cumulative() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert list(histogram.lines("h")) == [
        'h_bucket{le="0.1"} 2',
        'h_bucket{le="1.0"} 3',
        'h_bucket{le="+Inf"} 4',
        "h_sum 7.65",
        "h_count 4",
    ]
