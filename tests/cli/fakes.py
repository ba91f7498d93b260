"""An answerer without a model: says what it is told to say, and notes what it was asked."""

from collections.abc import Iterator, Sequence

from smollm3.cli.answer import Answer
from smollm3.cli.conversation import Message
from smollm3.cli.settings import Settings
from smollm3.text.parser import Delta
from smollm3.text.tool_calls import ToolCall

Script = Sequence[Delta | BaseException]


def text(content: str) -> Delta:
    return Delta("content", content)


def thought(content: str) -> Delta:
    return Delta("reasoning", content)


def call(name: str, arguments: str) -> Delta:
    return Delta("tool_call", tool_call=ToolCall(name, arguments))


class FakeAnswering:
    """Gives the deltas of a script; an exception in it is raised in its place."""

    def __init__(self, script: Script, finish_reason: str = "stop") -> None:
        self.answer = Answer(num_prompt=3)
        self._script = script
        self._finish_reason = finish_reason
        self.held_back: list[Delta] = []

    def __iter__(self) -> Iterator[Delta]:
        for item in self._script:
            if isinstance(item, BaseException):
                raise item
            self._keep(item)
            yield item
        self.answer.finish_reason = self._finish_reason

    def finish(self) -> list[Delta]:
        for delta in self.held_back:
            self._keep(delta)
        return self.held_back

    def _keep(self, delta: Delta) -> None:
        self.answer.num_generated += 1
        if delta.kind == "content":
            self.answer.content += delta.text
        elif delta.kind == "reasoning":
            self.answer.reasoning += delta.text
        elif delta.tool_call:
            self.answer.tool_calls.append(delta.tool_call)


class FakeAnswerer:
    """Answers with one script after the other."""

    def __init__(self, *scripts: Script | FakeAnswering | Exception) -> None:
        self.scripts = list(scripts)
        self.asked: list[list[Message]] = []

    def __call__(self, messages: Sequence[Message], settings: Settings) -> FakeAnswering:
        self.asked.append(list(messages))
        script = self.scripts.pop(0)
        if isinstance(script, Exception):
            raise script
        return script if isinstance(script, FakeAnswering) else FakeAnswering(script)
