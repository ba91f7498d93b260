"""Ctrl-C between and inside shielded stretches, and a keyboard that does not show."""

import os
import pty
import signal
import termios
import threading
from pathlib import Path

import pytest

from smollm3.cli.interrupts import Interrupts, silent_keyboard


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_breaks_in_outside_a_shield() -> None:
    reached = False
    with Interrupts().active(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        press_ctrl_c()
        reached = True
    assert not reached


def test_ctrl_c_waits_for_the_end_of_a_shield_and_comes_once() -> None:
    steps = []
    with Interrupts().active() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.shielded():  # noqa: PT012
            press_ctrl_c()
            press_ctrl_c()
            steps.append("drawn")
        with interrupts.shielded():
            steps.append("drawn again")
    assert steps == ["drawn", "drawn again"]


def test_ctrl_c_can_be_forgotten() -> None:
    with Interrupts().active() as interrupts:
        with interrupts.shielded(discard=True):
            press_ctrl_c()
        with interrupts.shielded():
            pass


def test_an_error_in_a_shield_is_not_hidden_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), Interrupts().active() as interrupts, interrupts.shielded():  # noqa: PT012
        press_ctrl_c()
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_is_handled() -> None:
    done = []

    def work() -> None:
        with Interrupts().active() as interrupts, interrupts.shielded():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_keys_do_not_show_in_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(theirs, encoding="utf-8") as stdin:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(KeyboardInterrupt), silent_keyboard():  # noqa: PT012
            assert not termios.tcgetattr(stdin)[3] & termios.ECHO
            raise KeyboardInterrupt
        assert termios.tcgetattr(stdin)[3] & termios.ECHO
    os.close(ours)


def test_without_a_terminal_there_is_nothing_to_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("")
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with silent_keyboard():
            pass
