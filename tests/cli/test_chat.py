"""The chat's logic with an answerer that is no model: what is kept, what is said, what is shown."""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from emulator import Terminal
from fakes import FakeAnswerer, FakeAnswering, Script, call, text, thought

from smollm3.cli import chat as chat_module
from smollm3.cli.chat import Chat, Ready, new_view, piped_lines, run_chat
from smollm3.cli.commands import Session
from smollm3.cli.options import LoadOptions
from smollm3.cli.settings import Settings
from smollm3.cli.view import PlainView, TerminalView
from smollm3.errors import ContextOverflowError, ParameterError, PromptError, SmolLM3Error
from smollm3.text.parser import Delta

HELLO: Script = [text("Hel"), text("lo")]
AGAIN: Script = [text("Hi again")]


class Talk:
    """A chat whose output can be read."""

    def __init__(self, *scripts: Script | FakeAnswering | Exception) -> None:
        self.session = Session("small")
        self.answerer = FakeAnswerer(*scripts)
        self.out = io.StringIO()
        self.said: list[str] = []
        self.chat = Chat(
            self.session,
            self.answerer,
            new_view=lambda settings: new_view(settings, self.out),
            say=self.said.append,
        )

    def handle(self, *lines: str) -> bool:
        return [self.chat.handle(line) for line in lines][-1]

    @property
    def contents(self) -> list[object]:
        return [message["content"] for message in self.session.conversation.messages]


def test_questions_and_answers_become_the_conversation() -> None:
    talk = Talk(HELLO, AGAIN)
    assert talk.handle("Hi", "  ", "Hi!")
    assert talk.out.getvalue() == "Hello\nHi again\n"
    assert talk.contents == ["Hi", "Hello", "Hi!", "Hi again"]
    assert [len(asked) for asked in talk.answerer.asked] == [1, 3]
    assert talk.said == []


def test_thoughts_and_tool_calls_are_kept_with_the_answer() -> None:
    talk = Talk([thought("hm"), text("ok"), call("get_weather", '{"city": "Paris"}')])
    talk.handle("weather?")
    assert talk.session.conversation.messages[-1] == {
        "role": "assistant",
        "content": "ok",
        "reasoning_content": "hm",
        "tool_calls": [
            {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    }
    assert talk.out.getvalue() == (
        'ok\n<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>\n'
    )


@pytest.mark.parametrize("error", [PromptError("no\ngood \x1b[2J"), ParameterError("bad")])
@pytest.mark.parametrize("late", [False, True])
def test_a_failing_answer_keeps_the_chat_and_the_question(error: SmolLM3Error, late: bool) -> None:
    talk = Talk(HELLO, [text("some"), error] if late else error, AGAIN)
    assert talk.handle("Hi", "What?")
    (line,) = talk.said
    assert line.startswith("error: ")
    assert "\n" not in line
    assert "\x1b" not in line
    assert talk.contents == ["Hi", "Hello"]
    assert talk.session.conversation.unanswered == "What?"
    talk.handle("/regenerate")
    assert talk.contents == ["Hi", "Hello", "What?", "Hi again"]
    assert talk.session.conversation.unanswered is None
    assert talk.chat.num_errors == 1


def test_a_full_context_offers_clear() -> None:
    talk = Talk(HELLO, ContextOverflowError("9000 tokens do not fit 8192"))
    talk.handle("Hi", "long")
    assert talk.said == [
        "error: 9000 tokens do not fit 8192 (/clear starts over, /save FILE keeps what was said)"
    ]
    assert talk.contents == ["Hi", "Hello"]


def test_ctrl_c_keeps_the_answer_so_far() -> None:
    stopped = FakeAnswering([text("Once upon"), KeyboardInterrupt()])
    stopped.held_back = [text(" a")]
    talk = Talk(stopped, AGAIN)
    assert talk.handle("story")
    assert talk.out.getvalue() == "Once upon a\n"
    assert talk.contents == ["story", "Once upon a"]
    assert talk.said == ["stopped: the answer so far is part of the chat, /regenerate asks again"]
    talk.handle("/regenerate")
    assert talk.contents == ["story", "Hi again"]


def test_ctrl_c_before_the_answer_leaves_no_trace_but_the_question() -> None:
    talk = Talk(HELLO, [thought("hm"), KeyboardInterrupt()], AGAIN)
    talk.handle("Hi", "story")
    assert talk.contents == ["Hi", "Hello"]
    assert talk.said == ["stopped before the answer began: /regenerate asks again"]
    talk.handle("/regenerate")
    assert talk.contents == ["Hi", "Hello", "story", "Hi again"]


def test_a_signal_while_drawing_waits_for_the_end_of_the_drawing() -> None:
    drawn: list[str] = []

    class View:
        def push(self, delta: Delta) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            drawn.append(delta.text)  # not reached if Ctrl-C broke in

        def finish(self) -> None:
            drawn.append("finish")

    talk = Talk([text("one"), text("two")])
    talk.chat = Chat(talk.session, talk.answerer, new_view=lambda settings: View(), say=talk.said.append)
    before = signal.getsignal(signal.SIGINT)
    assert talk.handle("go")
    assert drawn == ["one", "finish"]
    assert talk.contents == ["go", "one"]
    assert signal.getsignal(signal.SIGINT) is before


def test_regenerating_replaces_the_answer_only_when_there_is_a_new_one() -> None:
    talk = Talk(HELLO, PromptError("broken"), AGAIN)
    talk.handle("Hi", "/regenerate")
    assert talk.contents == ["Hi", "Hello"]
    talk.handle("/regenerate")
    assert talk.contents == ["Hi", "Hi again"]
    assert talk.answerer.asked[0] == talk.answerer.asked[1] == talk.answerer.asked[2]


def test_an_answer_that_is_cut_off_says_so() -> None:
    talk = Talk(FakeAnswering(HELLO, finish_reason="length"))
    talk.handle("Hi")
    assert talk.said == ["cut off at 2 tokens: /set max_new_tokens N allows more"]


def test_commands_speak_and_a_failing_one_keeps_the_chat() -> None:
    talk = Talk()
    assert talk.handle("/set top_k 5", "/set top_k x", "/nonsense", "/load /no/such/file")
    assert talk.said[0] == "top_k: 5"
    assert all(line.startswith("error: ") for line in talk.said[1:])
    assert not talk.handle("/exit")


def test_two_slashes_send_a_message_with_one() -> None:
    talk = Talk(HELLO)
    talk.handle("//etc/hosts?")
    assert talk.contents == ["/etc/hosts?", "Hello"]


def test_the_view_depends_on_who_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(new_view(Settings(), Terminal()), TerminalView)
    assert isinstance(new_view(Settings(), io.StringIO()), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    view = new_view(Settings(), terminal)
    view.push(text("a\x1b[2Jb"))
    assert terminal.raw == r"a\x1b[2Jb"


Piped = Callable[[bytes], None]


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Piped:
    def feed(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    return feed


def test_piped_lines_are_turns(
    piped: Piped, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    piped(f"Hi\r\n\n/system Be kind.\nHi é\n/save {path}\n/exit\nnever\n".encode())
    answerer = FakeAnswerer(HELLO, [text("\x1b[1mbold")])
    monkeypatch.setattr(chat_module, "_load", lambda options, template: Ready("small", False, answerer))
    code = run_chat(LoadOptions("small"), Settings(), template=None, system=None, load_from=None)
    captured = capsys.readouterr()
    assert code == 0
    assert captured.out == "Hello\n\x1b[1mbold\n", "into a pipe goes the text itself"
    assert "saved 5 messages" in captured.err
    assert answerer.asked[1][0] == {"role": "system", "content": "Be kind."}
    assert answerer.asked[1][-1] == {"role": "user", "content": "Hi é"}
    piped(b"more")
    answerer.scripts = [AGAIN]
    run_chat(LoadOptions("small"), Settings(), template=None, system="New.", load_from=path)
    assert [message["content"] for message in answerer.asked[-1]] == [
        "New.",
        "Hi",
        "Hello",
        "Hi é",
        "\x1b[1mbold",
        "more",
    ]


def test_an_error_in_a_pipe_shows_in_the_exit_code(
    piped: Piped, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(b"/nonsense\nHi\n")
    answerer = FakeAnswerer(HELLO)
    monkeypatch.setattr(chat_module, "_load", lambda options, template: Ready("small", False, answerer))
    assert run_chat(LoadOptions("small"), Settings(), template=None, system=None, load_from=None) == 1
    assert capsys.readouterr().out == "Hello\n"
    with pytest.raises(ParameterError, match="no thinking mode"):
        run_chat(LoadOptions("small"), Settings(thinking=True), template=None, system=None, load_from=None)


def test_input_that_is_no_text_names_its_line(piped: Piped) -> None:
    piped(b"fine\n\xff\xfe\n")
    lines = piped_lines()
    assert next(lines) == "fine"
    with pytest.raises(PromptError, match="line 2 of the input is not UTF-8"):
        next(lines)
