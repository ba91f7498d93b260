"""How an answer looks while it streams: on a terminal, or as plain text for a pipe.

In: the parser's deltas. Out: text on a stream. Thoughts are dim and can be folded into one line, tool calls
are shown as one line each, control characters are spelled out wherever a terminal reads them.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from smollm3.cli.terminal import LiveRegion, escape_controls, one_line, terminal_size

if TYPE_CHECKING:
    from smollm3.cli.markdown import StreamedText
    from smollm3.text.parser import Delta
    from smollm3.text.tool_calls import ToolCall

_FOLDED_FRAME_SECONDS = 0.5


class AnswerView(Protocol):
    """Where the deltas of one answer go."""

    def push(self, delta: "Delta") -> None: ...

    def finish(self) -> None: ...


def describe_call(call: "ToolCall") -> str:
    """Return a tool call as one harmless line."""
    return one_line(f"{call.name}({call.arguments})")


class PlainView:
    """The answer as plain text: content and tool calls on `out`, thoughts on `aside` where there is one."""

    def __init__(self, out: TextIO, *, aside: TextIO | None = None, escape: bool = False) -> None:
        self._out = out
        self._aside = aside
        self._escape = escape
        self._kind = ""
        self._last = ""

    def push(self, delta: "Delta") -> None:
        """Write a delta at once; the newlines before an answer are left out."""
        if delta.kind == "reasoning":
            if self._aside:
                self._write_aside(delta.text)
            return
        self._leave_aside()
        if delta.kind == "tool_call" and delta.tool_call:
            start = "\n" if self._last not in ("", "\n") else ""
            self._write(f"{start}<tool_call>{_call_json(delta.tool_call)}</tool_call>\n")
        else:
            self._write(delta.text if self._last else delta.text.lstrip("\n"))

    def finish(self) -> None:
        """End the last line."""
        self._leave_aside()
        if self._last not in ("", "\n"):
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._out.write(escape_controls(text) if self._escape else text)
            self._out.flush()
            self._last = text[-1]

    def _write_aside(self, text: str) -> None:
        assert self._aside
        if self._kind != "reasoning":
            self._aside.write("\x1b[2m")
            self._kind = "reasoning"
            text = text.lstrip("\n")
        self._aside.write(escape_controls(text))
        self._aside.flush()

    def _leave_aside(self) -> None:
        if self._kind == "reasoning" and self._aside:
            self._aside.write("\x1b[0m\n\n")
            self._aside.flush()
            self._kind = ""


def _call_json(call: "ToolCall") -> str:
    import json

    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False)


class TerminalView:
    """The answer on a terminal: thoughts dim or folded, then markdown or text, then tool calls."""

    def __init__(
        self,
        out: TextIO,
        *,
        markdown: bool = True,
        show_thinking: bool = True,
        size: Callable[[], tuple[int, int]] = terminal_size,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._markdown = markdown
        self._show_thinking = show_thinking
        self._size = size
        self._clock = clock
        self._kind = ""
        self._part: StreamedText | FoldedThoughts | None = None
        self._is_first = True

    def push(self, delta: "Delta") -> None:
        """Draw a delta; a change of kind ends the part before, with a blank line between."""
        if delta.kind == "tool_call":
            if delta.tool_call:
                self._end_part()
                self._out.write(f"\x1b[36m→ {describe_call(delta.tool_call)}\x1b[0m\n")
                self._out.flush()
                self._is_first = False
            return
        text = delta.text
        if delta.kind != self._kind:
            text = text.lstrip("\n")
            if not text.strip():
                return
            self._end_part()
            self._begin_part(delta.kind)
        assert self._part
        self._part.push(text)

    def finish(self) -> None:
        """Draw what is left; the cursor stands at the beginning of a line."""
        self._end_part()

    def _begin_part(self, kind: str) -> None:
        if not self._is_first:
            self._out.write("\n")
        self._is_first = False
        self._kind = kind
        if kind == "reasoning" and not self._show_thinking:
            self._part = FoldedThoughts(self._out, self._size, self._clock)
            return
        from smollm3.cli.markdown import StreamedText  # rich is only needed where somebody looks

        dim = kind == "reasoning"
        markdown = self._markdown and not dim
        self._part = StreamedText(self._out, markdown=markdown, dim=dim, size=self._size, clock=self._clock)

    def _end_part(self) -> None:
        if self._part:
            self._part.finish()
        self._part = None
        self._kind = ""


class FoldedThoughts:
    """Thoughts as one dim line that says how long they have been going on."""

    def __init__(self, out: TextIO, size: Callable[[], tuple[int, int]], clock: Callable[[], float]) -> None:
        self._region = LiveRegion(out, size)
        self._clock = clock
        self._began = clock()
        self._next_frame = 0.0
        self._num_words = 0
        self._last = " "

    def push(self, text: str) -> None:
        """Count the words; the line is drawn twice a second."""
        pairs = zip(self._last + text, text, strict=False)
        self._num_words += sum(before.isspace() and not after.isspace() for before, after in pairs)
        self._last = text[-1:] or self._last
        if self._clock() >= self._next_frame:
            self._region.show([f"\x1b[2mthinking… {self._num_words} words\x1b[0m"])
            self._next_frame = self._clock() + _FOLDED_FRAME_SECONDS

    def finish(self) -> None:
        """Leave the line that sums the thoughts up."""
        seconds = self._clock() - self._began
        self._region.commit([f"\x1b[2mthought for {seconds:.0f} s ({self._num_words} words)\x1b[0m"])
