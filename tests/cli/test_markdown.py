"""Streamed markdown: however an answer is cut, the screen ends as if it had come in one piece."""

import itertools
import random
import re
import time

import pytest
from emulator import Terminal
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from smollm3.cli.markdown import StreamedText, render_markdown, split_finished, split_lines

ANSWER = """# Title

Some *emphasis*, **bold** and `code`, then \\(x_1\\) and <b>html</b>, long enough to wrap over several lines.

1. one
2. two
   - nested
3. three

```python
def f(x):
    return x + 1  # comment

print(f(1))
```

| name | value |
|------|------:|
| one  |     1 |
| two  |    22 |

> quoted *text*

Setext
======

[1]: http://example.org "title"
![image](http://example.org/a.png)

"""
LONG = (
    ANSWER
    + "\n".join(f"- item {i}" for i in range(40))
    + "\n\n```\n"
    + "\n".join(map(str, range(30)))
    + "\n```\nDone."
)


def shown(pieces: list[str], *, columns: int = 60, rows: int = 12, markdown: bool = True) -> list[str]:
    """What scrollback and screen hold after the pieces, each of them drawn."""
    terminal = Terminal(columns, rows)
    ticks = itertools.count()
    view = StreamedText(terminal, markdown=markdown, size=terminal.size, clock=lambda: float(next(ticks)))
    for piece in pieces:
        view.push(piece)
    view.finish()
    assert terminal.cursor[0] == 0
    return terminal.lines


def cut(text: str, chance: random.Random, longest: int) -> list[str]:
    pieces = []
    while text:
        size = chance.randint(1, longest)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize(("longest", "rows"), [(1, 12), (7, 12), (7, 6), (40, 24)])
def test_every_cut_ends_in_the_same_screen(longest: int, rows: int) -> None:
    whole = shown([LONG], rows=rows)
    assert shown(cut(LONG, random.Random(longest), longest), rows=rows) == whole
    assert [line for line in whole if "item 7" in line] == [" • item 7"], "no line twice"
    assert whole[-1] == "Done."


def test_what_the_reader_sees() -> None:
    lines = shown([ANSWER])
    text = "\n".join(lines)
    assert lines[0] == "Title"
    assert "Some emphasis, bold and code, then \\(x_1\\) and <b>html</b>" in text
    assert " • nested" in text
    assert "    return x + 1  # comment" in text
    assert "```" not in text
    assert re.search(r"^ name +value *$", text, re.MULTILINE)
    assert "▌ quoted text" in text
    assert '[1]: http://example.org "title"' in text, "a link definition does not vanish"
    assert "http://example.org/a.png" in text


def test_code_is_highlighted_and_emphasis_styled() -> None:
    console = Console(force_terminal=True, color_system="standard", width=60)
    code = render_markdown("```python\ndef f(): pass\n```", console)
    assert any("\x1b[" in line and "def" in line for line in code)
    (line,) = render_markdown("some **bold** text", console)
    assert re.search(r"\x1b\[1m\s*bold", line)
    (heading,) = render_markdown("# Title", console)
    assert "\x1b[" in heading
    assert heading.startswith("\x1b"), "left-aligned"


def test_without_colours_there_are_no_colour_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(force_terminal=True, color_system="standard", width=60)
    assert not re.search(
        r"\x1b\[[0-9;]*3[0-7]", "\n".join(render_markdown("```python\ndef f(): pass\n```", console))
    )


def test_escape_sequences_of_the_model_do_not_reach_the_terminal() -> None:
    terminal = Terminal()
    view = StreamedText(terminal, size=terminal.size)
    view.push("before \x1b[2J\x1b]0;owned\x07 after\n\n```\n\x1b[31mred\n```\n")
    view.finish()
    assert "\x1b[2J" not in terminal.raw
    assert "\x1b]0;" not in terminal.raw
    assert r"before \x1b[2J\x1b]0;owned\x07 after" in "\n".join(terminal.lines)
    assert r"\x1b[31mred" in terminal.lines


def test_links_show_where_they_lead() -> None:
    terminal = Terminal()
    view = StreamedText(terminal, size=terminal.size)
    view.push("[bank](http://evil.example)")
    view.finish()
    assert "\x1b]8" not in terminal.raw
    assert terminal.lines == ["bank (http://evil.example)"]


@pytest.mark.parametrize(
    ("text", "finished", "rest"),
    [
        ("", [], ""),
        ("one", [], "one"),
        ("one\n\ntwo", [], "one\n\ntwo"),
        ("one\n\ntwo\n", ["one\n"], "two\n"),
        ("one\n#", [], "one\n#"),
        ("one\n# two\n", ["one"], "# two\n"),
        ("```\na\n\nb\n", [], "```\na\n\nb\n"),
        ("```\na\n```\nnext\n", ["```\na\n```"], "next\n"),
        ("- a\n\n- b\n", [], "- a\n\n- b\n"),
        ("- a\n\nend\n", ["- a\n"], "end\n"),
    ],
)
def test_blocks_are_final_once_nothing_can_change_them(text: str, finished: list[str], rest: str) -> None:
    assert split_finished(text) == (finished, rest)


def test_plain_text_keeps_its_lines() -> None:
    text = "one\n\n  two *stars*\n\n\nthree\n\n"
    assert shown(cut(text, random.Random(0), 3), markdown=False) == [
        "one",
        "",
        "  two *stars*",
        "",
        "",
        "three",
    ]
    assert split_lines("a\nb") == (["a"], "b")


def test_wide_characters_wrap_without_a_trace() -> None:
    text = "中文字符" * 20 + " 👩 " + "العربية " * 10
    assert shown(cut(text, random.Random(1), 2), columns=31) == shown([text], columns=31)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["#", "-", " ", "\n", "\n\n", "```", "|", "*", "1. ", "> ", "a", "word", "`", "=", "[x]"]
        ),
        max_size=40,
    )
)
def test_any_text_ends_the_same_however_it_is_cut(pieces: list[str]) -> None:
    assert shown(pieces) == shown(["".join(pieces)])


@pytest.mark.parametrize(
    "text", [">" * 3000 + "x", "- " * 2000 + "x", "*" * 2000, "[" * 2000, "|" * 3000 + "\n|-"]
)
def test_adversarial_nesting_is_shown_in_time(text: str) -> None:
    began = time.process_time()
    assert shown([text, "\n\nend\n"])[-1] == "end"
    assert time.process_time() - began < 10


def test_a_narrower_window_draws_on_below() -> None:
    terminal = Terminal(40, 12)
    ticks = itertools.count()
    view = StreamedText(terminal, size=terminal.size, clock=lambda: float(next(ticks)))
    view.push("first words ")
    terminal.columns = 30
    view.push("and more of them than a narrow line holds")
    view.finish()
    assert "narrow" in "\n".join(terminal.lines)
