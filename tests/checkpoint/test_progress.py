"""A bar appears on a terminal when the work takes longer than a second, and nowhere else."""

import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from smollm3.checkpoint import progress as module
from smollm3.checkpoint.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal; to be called in the test, for pytest sets stderr anew between its phases."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def ticking(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let each look at the clock be `seconds` after the one before."""
    times = iter(step * seconds for step in range(10**6))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(times)))


def test_slow_work_on_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    ticking(monkeypatch, 0.6)
    assert list(progress(range(5), 5, "Loading weights")) == list(range(5))
    assert "Loading weights" in terminal.getvalue()
    assert "5/5" in terminal.getvalue().replace(" ", "")


def test_quick_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    ticking(monkeypatch, 0.1)
    assert list(progress(range(5), 5, "Loading weights")) == list(range(5))
    assert terminal.getvalue() == ""


def test_slow_work_into_a_pipe_shows_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking(monkeypatch, 5)
    assert list(progress(range(5), 5, "Loading weights")) == list(range(5))
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_an_error_in_the_work_takes_the_bar_down(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    ticking(monkeypatch, 2)
    stopped = []

    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise RuntimeError("broken")

    start = module._start_bar

    def watched(label: str, total: int) -> object:
        bar = start(label, total)
        stop = bar.stop
        monkeypatch.setattr(bar, "stop", lambda: (stopped.append(True), stop()))
        return bar

    monkeypatch.setattr(module, "_start_bar", watched)
    with pytest.raises(RuntimeError, match="broken"):
        list(progress(failing(), 3, "Loading weights"))
    assert stopped == [True]
