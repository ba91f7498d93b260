"""The chat: reads messages and commands, streams answers, keeps the conversation.

In: what a person types, or lines from a pipe. Out: answers on stdout, everything else on stderr. A
failing answer or command is one line, and the chat goes on with nothing lost.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from smollm3.cli.commands import COMMANDS, Session, is_command, message_of, run_command
from smollm3.cli.conversation import Message
from smollm3.cli.interrupts import Interrupts, silent_keyboard
from smollm3.cli.line_editor import History, LineEditor, history_path
from smollm3.cli.options import LoadOptions
from smollm3.cli.settings import NAMES, Settings
from smollm3.cli.terminal import can_redraw, escape_controls, is_terminal, one_line
from smollm3.cli.view import AnswerView, PlainView, TerminalView
from smollm3.errors import ContextOverflowError, PromptError, SmolLM3Error

if TYPE_CHECKING:
    from smollm3.cli.answer import Answer
    from smollm3.text.parser import Delta


class Answering(Protocol):
    """An answer being given: see `AnswerStream`."""

    answer: "Answer"

    def __iter__(self) -> Iterator["Delta"]: ...

    def finish(self) -> list["Delta"]: ...


Answerer = Callable[[Sequence[Message], Settings], Answering]


class Chat:
    """Turns lines into answers and replies; knows where to write, not where the lines come from."""

    def __init__(
        self,
        session: Session,
        answerer: Answerer,
        *,
        new_view: Callable[[Settings], AnswerView],
        say: Callable[[str], None],
    ) -> None:
        self.session = session
        self.num_errors = 0
        self._answerer = answerer
        self._new_view = new_view
        self._say = say

    def handle(self, line: str) -> bool:
        """Answer a message or run a command; False when the chat is over."""
        if not line.strip():
            return True
        try:
            if not is_command(line):
                self._ask(message_of(line))
                return True
            reply = run_command(self.session, line)
            if reply.text:
                self._say(escape_controls(reply.text))
            if reply.action == "regenerate":
                self._answer(self.session.conversation.to_repeat())
            return reply.action != "exit"
        except SmolLM3Error as error:
            self.complain(error)
            return True

    def complain(self, error: SmolLM3Error) -> None:
        """Say what went wrong, in one line."""
        self.num_errors += 1
        self._say(f"error: {one_line(str(error))}")

    def _ask(self, text: str) -> None:
        asked = self.session.conversation.with_question(text)
        # Until the answer is there the question is kept aside, so that an error or Ctrl-C cannot lose it.
        self.session.conversation.unanswered = text
        self._answer(asked)

    def _answer(self, asked: list[Message]) -> None:
        settings = self.session.settings
        try:
            answering = self._answerer(asked, settings)
            stopped = self._stream(answering, self._new_view(settings))
        except ContextOverflowError as error:
            way_out = "/clear starts over, /save FILE keeps what was said"
            raise ContextOverflowError(f"{one_line(str(error))} ({way_out})") from error
        answer = answering.answer
        if stopped and not answer.content.strip() and not answer.tool_calls:
            self._say("stopped before the answer began: /regenerate asks again")
            return
        self.session.conversation.record(asked, answer.message())
        if stopped:
            self._say("stopped: the answer so far is part of the chat, /regenerate asks again")
        elif answer.finish_reason == "length":
            self._say(f"cut off at {answer.num_generated} tokens: /set max_new_tokens N allows more")

    def _stream(self, answering: Answering, view: AnswerView) -> bool:
        """Show the answer as it comes; True when Ctrl-C stopped it."""
        stopped = False
        with silent_keyboard(), Interrupts().active() as interrupts:
            try:
                for delta in answering:
                    with interrupts.shielded():
                        view.push(delta)
            except KeyboardInterrupt:
                stopped = True
            finally:
                with interrupts.shielded(discard=True):
                    for delta in answering.finish() if stopped else ():
                        view.push(delta)
                    view.finish()
        return stopped


def new_view(settings: Settings, out: TextIO) -> AnswerView:
    """Return how answers look on `out`."""
    if can_redraw(out):
        return TerminalView(out, markdown=settings.markdown, show_thinking=settings.show_thinking)
    return PlainView(out, escape=is_terminal(out))


def run_chat(
    options: LoadOptions,
    settings: Settings,
    *,
    template: str | None,
    system: str | None,
    load_from: Path | None,
) -> int:
    """Run the chat until its input ends; returns the exit code."""
    session = Session(options.model or "")
    if load_from:
        session.conversation.load(load_from)
    if system is not None:
        session.conversation.set_system(system)
    ready = _load(options, template)
    session.model, session.can_think = ready.name, ready.can_think
    session.change(settings)
    chat = Chat(session, ready.answerer, new_view=lambda settings: new_view(settings, sys.stdout), say=_say)
    if not is_terminal(sys.stdin):
        for line in piped_lines():
            if not chat.handle(line):
                break
        return 1 if chat.num_errors else 0
    _say("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    if session.conversation.messages:
        _say(f"going on with {len(session.conversation.messages)} messages")
    return _talk(chat)


def _talk(chat: Chat) -> int:
    editor = LineEditor(History(history_path()), [*COMMANDS, *NAMES])
    while True:
        try:
            message = editor.read()
        except KeyboardInterrupt:
            _say("\n(Ctrl-D or /exit leaves)")
            continue
        except PromptError as error:
            chat.complain(error)
            continue
        if message is None:
            _say("")
            return 0
        if not chat.handle(message):
            return 0


def piped_lines() -> Iterator[str]:
    """Yield the lines of stdin. Raises PromptError when one is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise PromptError(f"line {number} of the input is not UTF-8 text: convert it first") from None


@dataclass(frozen=True)
class Ready:
    """A loaded model, as the chat needs it."""

    name: str
    can_think: bool
    answerer: Answerer


def _load(options: LoadOptions, template: str | None) -> Ready:
    from smollm3.cli.answer import AnswerStream, can_think, chat_prompt, read_template
    from smollm3.cli.loading import describe, load

    source = read_template(template)
    loaded = load(options)
    _say(describe(loaded))
    num_answers = 0
    runner = loaded.model.new_runner()  # one for the whole chat: a turn takes in only what is new

    def answer(messages: Sequence[Message], settings: Settings) -> Answering:
        nonlocal num_answers
        # Each answer has a seed of its own, so that /regenerate differs and the whole chat can be repeated.
        seed = None if settings.seed is None else settings.seed + num_answers
        num_answers += 1
        prompt = chat_prompt(loaded, messages, settings, source)
        return AnswerStream(loaded, prompt, settings, seed=seed, runner=runner)

    return Ready(loaded.name, can_think(loaded, source), answer)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
