"""Typed lines: messages of several lines, and the history on disk."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from smollm3.cli import line_editor
from smollm3.cli.line_editor import MAX_HISTORY, History, LineEditor, history_path, read_message


def reader(*lines: str) -> Callable[[str], str]:
    """Return what hands the lines out one by one, then ends; checks the prompts."""
    waiting = list(lines)

    def read(prompt: str) -> str:
        assert prompt == ("> " if len(waiting) == len(lines) else ". ")
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    return read


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["hello"], "hello"),
        ([""], ""),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (["a path C:\\\\"], "a path C:\\\\"),
        (['"""', "one", "", "  two", '"""'], "one\n\n  two"),
        (['"""one', 'two"""'], "one\ntwo"),
        (['"""just one"""'], "just one"),
        (['"""', "ends in backslash\\", '"""'], "ends in backslash\\"),
        (["pasted\nlines"], "pasted\nlines"),
        (["/set top_k 3"], "/set top_k 3"),
        ([], None),
        (["half\\"], "half"),
        (['"""', "half a block"], "half a block"),
    ],
)
def test_lines_become_messages(lines: list[str], message: str | None) -> None:
    assert read_message(reader(*lines)) == message


def test_the_history_is_private_and_holds_messages_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "state" / "smollm3" / "chat_history"
    history = History(path)
    for entry in ("one", "one", "two\nlines é", "  ", ""):
        history.add(entry)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert History(path).entries == ["one", "two\nlines é"]


def test_an_open_history_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "chat_history"
    path.write_text('"old"\n')
    path.chmod(0o644)
    History(path).add("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert History(path).entries == ["old", "new"]


def test_the_history_stays_short_and_survives_damage(tmp_path: Path) -> None:
    path = tmp_path / "chat_history"
    entries = [json.dumps(str(i)) for i in range(3 * MAX_HISTORY)]
    path.write_bytes("\n".join([*entries, "not json", "3", "[" * 9999]).encode() + b"\n\xff\xfe\n")
    history = History(path)
    assert len(history.entries) == MAX_HISTORY
    assert history.entries[-1] == str(3 * MAX_HISTORY - 1)
    assert len(path.read_text().splitlines()) == MAX_HISTORY


def test_a_disk_that_fails_costs_the_history_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "chat_history")
    history.add("kept in memory")
    assert history.entries == ["kept in memory"]


def test_where_the_history_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_path() == tmp_path / "smollm3" / "chat_history"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert history_path() == Path("/home/somebody/.local/state/smollm3/chat_history")


def test_the_editor_reads_and_remembers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    editor = LineEditor(History(tmp_path / "h"), ["/set", "/save", "seed"])
    monkeypatch.setattr(line_editor, "_input", reader("one\\", "two"))
    assert editor.read() == "one\ntwo"
    assert History(tmp_path / "h").entries == ["one\ntwo"]
    monkeypatch.setattr(line_editor, "_input", reader())
    assert editor.read() is None


def test_without_readline_the_editor_still_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "readline", None)
    editor = LineEditor(History(tmp_path / "h"))
    monkeypatch.setattr(line_editor, "_input", reader("hi"))
    assert editor.read() == "hi"
