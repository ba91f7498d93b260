"""The processor time around the model: what Python's threads use, without the model's share."""

import threading
import time
from pathlib import Path

import pytest

from smollm3.engine.stats import EngineStats
from smollm3.server.cpu_time import around_model_seconds, thread_seconds


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_work_in_any_thread_is_counted_and_the_models_is_taken_off() -> None:
    before = around_model_seconds(EngineStats(0, 0, 0, None))
    done, leave = threading.Event(), threading.Event()

    def work() -> None:
        busy(0.1)
        done.set()
        leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert done.wait(10)
    busy(0.1)
    model = EngineStats(0, 0, 0, None, forward_cpu_seconds_total=0.06, sampling_cpu_seconds_total=0.04)
    after, without = around_model_seconds(EngineStats(0, 0, 0, None)), around_model_seconds(model)
    leave.set()
    thread.join()
    assert before is not None
    assert after is not None
    assert without is not None
    assert 0.19 <= after - before < 1
    assert after - without == pytest.approx(0.1, abs=0.05)


def test_a_thread_that_has_ended_counts_nothing_and_no_proc_is_not_known(tmp_path: Path) -> None:
    assert thread_seconds(2**22) == 0
    assert thread_seconds(1, tmp_path / "none") is None
