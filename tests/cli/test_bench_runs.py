"""What a benchmark runs and reads off the machine: a runner that keeps books, and answers known otherwise."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from smollm3.cli import bench_machine
from smollm3.cli.bench_model import Traffic
from smollm3.cli.bench_options import BenchOptions, parse_counts
from smollm3.cli.bench_record import Timings, times
from smollm3.cli.bench_runs import Workload, decode_at, decode_together
from smollm3.engine.runner import Row, Runner
from smollm3.errors import ParameterError

STEP_S = 0.25


class Books:
    """A runner whose clock moves a quarter of a second per call; holds every slot to its own length."""

    context_size = 1000
    vocab_size = 50

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.open_slots: dict[int, list[int]] = {}
        self.calls: list[list[tuple[int, int]]] = []  # per call: (ids before, new ids) of each row
        self._last = 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def open(self, capacity: int) -> int:
        self._last += 1
        self.open_slots[self._last] = []
        return self._last

    def fork(self, slot: int) -> int:
        copy = self.open(0)
        self.open_slots[copy] = list(self.open_slots[slot])
        return copy

    def close(self, slot: int) -> None:
        del self.open_slots[slot]

    def forward(self, rows: Sequence[Row]) -> Tensor:
        for row in rows:
            assert row.start == len(self.open_slots[row.slot])
            assert all(0 <= i < self.vocab_size for i in row.token_ids)
            self.open_slots[row.slot].extend(row.token_ids)
        self.calls.append([(row.start, len(row.token_ids)) for row in rows])
        self.now += STEP_S
        return torch.zeros(len(rows), self.vocab_size)


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    return Books(monkeypatch)


def test_prefill_is_one_call_into_an_empty_cache(books: Books) -> None:
    work = Workload(books, num_new=3)
    assert work.prefill(100) == 100 / STEP_S
    assert books.calls == [[(0, 100)]]
    assert books.open_slots == {}


def test_one_cache_grows_from_context_to_context(books: Books) -> None:
    rates = dict(decode_at(Workload(books, num_new=3), (10, 25), repeat=2))
    assert rates == {10: [1 / STEP_S] * 2, 25: [1 / STEP_S] * 2}
    decodes = {start: [[(start + step, 1)] for step in range(3)] * 2 for start in (10, 25)}
    assert books.calls == [[(0, 10)], *decodes[10], [(10, 15)], *decodes[25]]
    assert books.open_slots == {}


def test_sequences_together_have_ids_of_their_own(books: Books) -> None:
    runs = decode_together(Workload(books, num_new=2), (1, 3), context=20, repeat=1)
    assert next(runs) == (1, [1 / STEP_S])
    filled = list(books.open_slots.values())
    assert len(filled) == 3
    assert len({tuple(ids) for ids in filled}) == 3
    assert next(runs) == (3, [3 / STEP_S])
    assert books.calls[-2:] == [[(20, 1)] * 3, [(21, 1)] * 3]
    assert list(runs) == []
    assert books.open_slots == {}


def test_the_same_seed_gives_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def ids(seed: int) -> list[int]:
        books = Books(monkeypatch)
        runner: Runner = books
        slot = books.open(30)
        Workload(runner, 1, seed).fill(slot, 0, 30)
        return books.open_slots[slot]

    assert ids(0) == ids(0) != ids(1)


def test_medians_and_shares_of_known_runs() -> None:
    timings = Timings([90.0, 100.0, 400.0], {512: [8.0, 10.0, 12.0], 2048: [5.0]}, {16: [70.0]})
    timings.beside_reads += [(10.0, 20e9), (12.0, 30e9), (5.0, 40e9)]
    traffic = Traffic(weights=10**9, position=100.0, windows=(0, 256))
    record = times(BenchOptions("m", 512, 31), timings, traffic, load_s=1.5, age=None)
    assert record["prefill_tokens_per_s"] == 100.0
    assert record["decode_tokens_per_s"] == 10.0
    assert record["first_token_s"] is None
    assert record["read_gb_per_s"] == 30.0
    assert record["bytes_per_token"] == 10**9 + 100 * (512 + 16 + 256)  # a full layer and a window of 256
    assert record["bandwidth_share"] == 0.4  # of 0.5, 0.4 and 0.125
    assert record["contexts"][1]["of_prompt_rate"] == 0.5
    assert record["contexts"][1]["bandwidth_share"] == 0.1667
    assert record["batches"] == [{"batch": 16, "tokens_per_s": 70.0, "runs": [70.0]}]


def test_lists_of_numbers() -> None:
    assert parse_counts("--contexts", None) == ()
    assert parse_counts("--contexts", "2048, 512,512") == (512, 2048)
    for text in ("", "1,,2", "-3", "1.5", "²", "0"):
        with pytest.raises(ParameterError, match="--contexts"):
            parse_counts("--contexts", text)


@pytest.mark.parametrize("native", [True, False])
def test_the_meter_reads_its_buffer(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_machine, "READ_BYTES", 1 << 22)
    meter = bench_machine.ReadMeter(2)
    meter._native = native
    small = meter.measure()
    assert 1e6 < small < 1e13
    assert meter._memory.min() == meter._memory.max() == 1


def test_a_process_has_a_peak_and_an_age_of_its_own() -> None:
    big = np.ones(300 << 20, np.uint8)  # what ru_maxrss of the child would begin with
    code = (
        "import json, time, numpy as np\nfrom smollm3.cli import bench_machine as m\n"
        "age, before = m.process_age(), m.peak_rss()\n"
        "block = np.ones(64 << 20, np.uint8)\nduring = m.peak_rss()\ndel block\n"
        "time.sleep(0.3)\n"
        "print(json.dumps([age, m.process_age(), before, during, m.peak_rss()]))"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    elapsed = time.monotonic() - begin
    first, second, before, during, after = json.loads(done.stdout)
    assert 0 <= first < second - 0.25
    assert second < elapsed + 0.1
    assert 1 << 20 < before < big.nbytes
    assert during - before > 60 << 20
    assert abs(after - during) < 1 << 20


def test_the_commit_is_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3.__file__", str(tmp_path / "smollm3" / "__init__.py"))
    assert bench_machine.commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=n@example.invalid"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert bench_machine.commit() == head[:12]
    (tmp_path / "file").write_text("2")
    assert bench_machine.commit() == f"{head[:12]}-dirty"
