"""How answers look: thoughts dim or folded, tool calls in a line, nothing that a terminal would obey."""

import io
import itertools

import pytest
from emulator import Terminal
from fakes import call, text, thought

from smollm3.cli.view import PlainView, TerminalView, describe_call
from smollm3.text.parser import Delta
from smollm3.text.tool_calls import ToolCall

ANSWER = [
    thought("\nLet me\nthink"),
    thought(" well.\n\n"),
    text("\n\nIt is "),
    text("**Paris**.\n"),
    call("look_up", '{"city": "Paris"}'),
    text("Done."),
]


def on_terminal(deltas: list[Delta], *, markdown: bool = True, show_thinking: bool = True) -> Terminal:
    terminal = Terminal(40, 10)
    ticks = itertools.count()
    view = TerminalView(
        terminal,
        markdown=markdown,
        show_thinking=show_thinking,
        size=terminal.size,
        clock=lambda: float(next(ticks)),
    )
    for delta in deltas:
        view.push(delta)
    view.finish()
    return terminal


def test_the_parts_of_an_answer_on_a_terminal() -> None:
    terminal = on_terminal(ANSWER)
    assert terminal.lines == [
        "Let me",
        "think well.",
        "",
        "It is Paris.",
        '→ look_up({"city": "Paris"})',
        "",
        "Done.",
    ]
    assert "\x1b[2mthink well." in terminal.raw, "thoughts are dim"
    assert "\x1b[1mParis" in terminal.raw
    assert terminal.cursor[0] == 0


def test_thoughts_fold_into_a_line() -> None:
    lines = on_terminal(ANSWER, show_thinking=False).lines
    assert lines[0].startswith("thought for ")
    assert lines[0].endswith("(4 words)")
    assert lines[1:3] == ["", "It is Paris."]
    assert "Let me" not in "\n".join(lines)


def test_without_markdown_the_text_stays_as_it_is() -> None:
    assert "It is **Paris**." in on_terminal(ANSWER, markdown=False).lines


@pytest.mark.parametrize(
    "deltas",
    [
        [text("\x1b]0;title\x07\x1b[2J")],
        [thought("\x1b]0;title\x07\x1b[2J")],
        [call("\x1b]0;x\x07", '{"a": "\x1b[2J\n"}')],
    ],
)
@pytest.mark.parametrize("markdown", [True, False])
def test_no_escape_sequence_of_the_model_reaches_a_terminal(deltas: list[Delta], markdown: bool) -> None:
    terminal = on_terminal(deltas, markdown=markdown)
    assert "\x1b]0" not in terminal.raw
    assert "\x1b[2J" not in terminal.raw
    assert r"\x1b" in "\n".join(terminal.lines)
    plain, aside = Terminal(), Terminal()
    view = PlainView(plain, aside=aside, escape=True)
    for delta in deltas:
        view.push(delta)
    view.finish()
    assert "\x1b]0" not in plain.raw + aside.raw
    assert "\x1b[2J" not in plain.raw + aside.raw


def test_an_answer_of_blanks_leaves_no_mess() -> None:
    assert on_terminal([text("\n\n"), text(" \n")]).lines == []
    assert on_terminal([thought("\n"), text("\n\nyes")]).lines == ["yes"]
    assert on_terminal([]).raw == ""


def test_a_pipe_gets_the_content_and_nothing_else() -> None:
    out = io.StringIO()
    view = PlainView(out)
    for delta in ANSWER:
        view.push(delta)
    view.finish()
    assert out.getvalue() == (
        "It is **Paris**.\n"
        '<tool_call>{"name": "look_up", "arguments": {"city": "Paris"}}</tool_call>\n'
        "Done.\n"
    )


def test_thoughts_go_aside_dimmed() -> None:
    out, aside = io.StringIO(), io.StringIO()
    view = PlainView(out, aside=aside)
    for delta in ANSWER[:4]:
        view.push(delta)
    view.finish()
    assert out.getvalue() == "It is **Paris**.\n"
    assert aside.getvalue() == "\x1b[2mLet me\nthink well.\n\n\x1b[0m\n\n"


def test_plain_text_comes_piece_by_piece() -> None:
    out = io.StringIO()
    view = PlainView(out)
    view.push(text("\n"))
    view.push(text("a"))
    assert out.getvalue() == "a"
    view.push(text("\nb"))
    assert out.getvalue() == "a\nb"
    view.finish()
    assert out.getvalue() == "a\nb\n"


def test_a_tool_call_whose_arguments_are_no_json_is_shown_all_the_same() -> None:
    out = io.StringIO()
    view = PlainView(out)
    view.push(call("f", "{broken"))
    assert out.getvalue() == '<tool_call>{"name": "f", "arguments": "{broken"}</tool_call>\n'
    assert describe_call(ToolCall("f", "{broken\n}")) == "f({broken })"
