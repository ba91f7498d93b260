"""Harmless text and the redrawn region, seen through a terminal emulator."""

import io
import os
import random

import pytest
from emulator import Terminal
from hypothesis import given
from hypothesis import strategies as st

from smollm3.cli.terminal import (
    LiveRegion,
    can_redraw,
    escape_controls,
    is_terminal,
    one_line,
    terminal_size,
    without_styles,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b]52;c;ZXZpbA==\x1b\\", r"\x1b]52;c;ZXZpbA==\x1b" + "\\"),
        ("a\rb", r"a\x0db"),
        ("a\r\nb", "a\nb"),
        ("back\x08\x7f", r"back\x08\x7f"),
        ("\x9b2J", r"\x9b2J"),
        ("abc\u202egnp.exe", r"abc\u202egnp.exe"),
        ("one\u2028two\x85three", r"one\u2028two\x85three"),
        ("half \ud83d", r"half \ud83d"),
        ("tab\tand\nnewline", "tab\tand\nnewline"),
        ("العربية 中文 👩‍🚀 é", "العربية 中文 👩‍🚀 é"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


@given(st.text())
def test_escaped_text_holds_no_control_character(text: str) -> None:
    escaped = escape_controls(text)
    assert not [c for c in escaped if (ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0]
    assert escape_controls(escaped) == escaped


def test_an_error_message_is_one_line() -> None:
    assert one_line("a\nb\r\n  c\x1b[2J") == r"a b c\x1b[2J"


def test_styles_are_cut_out_of_a_line() -> None:
    assert without_styles("\x1b[1;31mred\x1b[0m and \x1b[38;5;12mblue") == "red and blue"


def test_what_counts_as_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    assert not is_terminal(io.StringIO())
    assert not is_terminal(closed)
    assert is_terminal(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert can_redraw(Terminal())
    assert not can_redraw(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not can_redraw(Terminal())


def test_a_terminal_has_a_least_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "3")
    monkeypatch.setenv("LINES", "1")
    assert terminal_size() == (20, 4)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    assert terminal_size() == (100, 30)
    assert os.environ["LINES"] == "30"


def test_a_region_shows_its_lines_and_leaves_the_committed_ones() -> None:
    terminal = Terminal(20, 6)
    region = LiveRegion(terminal, terminal.size)
    region.show(["one", "two"])
    assert terminal.lines == ["one", "two"]
    region.show(["one", "two and a half"])
    assert terminal.lines == ["one", "two and a half"]
    region.show(["one"])
    assert terminal.lines == ["one"]
    region.show(["one", "two", "three"])
    assert terminal.lines == ["one", "two", "three"]
    region.commit(["ONE", "two"])
    assert terminal.lines == ["ONE", "two"]
    assert terminal.cursor == (0, 2)
    region.show(["live"])
    region.commit([])
    assert terminal.lines == ["ONE", "two"]
    assert terminal.cursor == (0, 2)


def test_growth_at_the_end_rewrites_the_last_line_only() -> None:
    terminal = Terminal(40, 10)
    region = LiveRegion(terminal, terminal.size)
    region.show([f"line {i}" for i in range(8)])
    terminal.raw = ""
    region.show([*[f"line {i}" for i in range(7)], "line 7 grows"])
    assert "line 6" not in terminal.raw
    terminal.raw = ""
    region.show([*[f"line {i}" for i in range(7)], "line 7 grows"])
    assert terminal.raw == "", "the same lines cost no byte"


def test_a_region_longer_than_the_screen_shows_its_end_and_commits_all() -> None:
    terminal = Terminal(20, 5)
    region = LiveRegion(terminal, terminal.size)
    lines: list[str] = []
    for i in range(20):
        lines.append(f"line {i}")
        region.show(lines)
    assert [line for line in terminal.display if line] == [f"line {i}" for i in range(16, 20)]
    assert terminal.lines == [f"line {i}" for i in range(16, 20)], "nothing live scrolls away"
    region.commit(lines)
    assert terminal.lines == lines


def test_a_full_line_does_not_break_the_count() -> None:
    terminal = Terminal(10, 6)
    region = LiveRegion(terminal, terminal.size)
    region.show(["0123456789", "abcdefghij"])
    region.show(["0123456789", "ABCDEFGHIJ", "x"])
    region.show(["9876543210", "y"])
    assert terminal.lines == ["9876543210", "y"]


def test_random_redraws_end_in_the_committed_lines() -> None:
    chance = random.Random(3)
    terminal = Terminal(12, 5)
    region = LiveRegion(terminal, terminal.size)
    expected: list[str] = []
    for _ in range(60):
        for _ in range(chance.randint(0, 4)):
            region.show(
                ["".join(chance.choices("abc", k=chance.randint(1, 12))) for _ in range(chance.randint(0, 9))]
            )
        final = [f"\x1b[1m{chance.random():.4f}\x1b[0m" for _ in range(chance.randint(0, 8))]
        region.commit(final)
        expected += [without_styles(line) for line in final]
    assert terminal.lines == expected
