"""One answer: messages or a raw prompt in, the parser's deltas out, and what it took.

The path is prompt_ids -> completion.stream with a ResponseParser. Knows no terminal.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smollm3.cli.conversation import Message
from smollm3.cli.loading import Loaded
from smollm3.cli.settings import DEFAULT_MAX_NEW_TOKENS, Settings
from smollm3.completion import CompletionChunk, stream
from smollm3.engine.runner import Runner
from smollm3.errors import ContextOverflowError, ParameterError, TemplateError
from smollm3.text.chat_template import reads_variable
from smollm3.text.parser import Delta, ResponseParser
from smollm3.text.prompt import Prompt, build_prompt
from smollm3.text.tool_calls import ToolCall

NO_THINKING_MODE = "this model's chat template has no thinking mode: leave --think out (in a chat: /no_think)"


@dataclass
class Answer:
    """What an answer came to so far. Times in seconds since the prompt was handed to the model."""

    num_prompt: int
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str | None = None
    num_generated: int = 0
    first_token_s: float | None = None
    total_s: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """How fast tokens came after the first one; None for fewer than two."""
        if self.first_token_s is None or self.num_generated < 2:
            return None
        return (self.num_generated - 1) / max(self.total_s - self.first_token_s, 1e-9)

    def message(self) -> Message:
        """Return the answer as a message for the next prompt."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message


def read_template(name: str | None) -> str | None:
    """Return the template to render with: None (the checkpoint's), "fixed", or the text of a jinja file."""
    if name is None or name == "fixed":
        return name
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise TemplateError(f"--template {name}: {reason}; give 'fixed' or a jinja file") from error


def can_think(loaded: Loaded, template: str | None) -> bool:
    """Whether the chat template has a thinking mode to switch."""
    source = template or loaded.tokenizer.chat_template
    return source is not None and reads_variable(source, "enable_thinking")


def chat_prompt(
    loaded: Loaded, messages: Sequence[Message], settings: Settings, template: str | None
) -> Prompt:
    """Return the prompt of a chat. Raises PromptError, TemplateError, ParameterError (no thinking mode)."""
    thinking = settings.thinking
    if not can_think(loaded, template):
        if thinking:
            raise ParameterError(NO_THINKING_MODE)
        thinking = None  # such a model answers at once anyway
    return build_prompt(loaded.tokenizer, messages, template=template, enable_thinking=thinking)


def raw_prompt(loaded: Loaded, text: str) -> Prompt:
    """Return the prompt of a text that is continued as it is."""
    return build_prompt(loaded.tokenizer, text)


class AnswerStream:
    """An answer being given: iterate over its deltas; `answer` grows alongside. Leaving the loop cancels."""

    def __init__(
        self,
        loaded: Loaded,
        prompt: Prompt,
        settings: Settings,
        *,
        parse: bool = True,
        seed: int | None = None,
        runner: Runner | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.answer = Answer(len(prompt.ids))
        self._clock = clock
        self._began = clock()
        # Nobody offered Python here: <code> in an answer is about HTML.
        self._parser = ResponseParser(thinking_open=prompt.thinking_open, code=False) if parse else None
        values = {name: value for name, value in settings.sampling().items() if value is not None}
        values["max_new_tokens"] = _budget(loaded, len(prompt.ids), settings.max_new_tokens)
        if settings.stop:
            values["stop_strings"] = list(settings.stop)
        if seed is not None:
            values["seed"] = seed
        self._chunks: Iterator[CompletionChunk] = stream(
            loaded.model, loaded.tokenizer, prompt.ids, parser=self._parser, runner=runner, **values
        )

    def __iter__(self) -> Iterator[Delta]:
        try:
            for chunk in self._chunks:
                self._count(chunk)
                yield from self._keep(chunk.deltas)
        finally:
            self.answer.total_s = self._clock() - self._began
            close = getattr(self._chunks, "close", None)
            if close:
                close()
        yield from self.finish()

    def finish(self) -> list[Delta]:
        """Return what the parser still held back; after an interruption it takes the loop's end's place."""
        parser, self._parser = self._parser, None
        return self._keep(parser.finish()) if parser else []

    def _count(self, chunk: CompletionChunk) -> None:
        now = self._clock() - self._began
        if self.answer.first_token_s is None:
            self.answer.first_token_s = now
        self.answer.total_s = now
        self.answer.num_generated = chunk.num_generated
        self.answer.finish_reason = chunk.finish_reason or self.answer.finish_reason

    def _keep(self, deltas: Sequence[Delta]) -> list[Delta]:
        for delta in deltas:
            if delta.kind == "reasoning":
                self.answer.reasoning += delta.text
            elif delta.kind == "content":
                self.answer.content += delta.text
            elif delta.tool_call:
                self.answer.tool_calls.append(delta.tool_call)
        return list(deltas)


def _budget(loaded: Loaded, num_prompt: int, asked: int | None) -> int:
    """Return how many tokens the answer may have; what was asked for is never cut down."""
    if asked is not None:
        return asked
    left = loaded.context_size - num_prompt
    if left < 1:
        raise ContextOverflowError(
            f"the prompt has {num_prompt} tokens and the model's context {loaded.context_size}: shorten it"
        )
    return min(DEFAULT_MAX_NEW_TOKENS, left)
