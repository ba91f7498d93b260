"""Streamed text of an answer in; reasoning, content and tool calls out, in linear time and for any chunking.

Matches text, never token ids. What looks like a call and is none stays visible text: nothing is lost but the
blanks around the tags.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from smollm3.text.messages import CODE_TOOL_NAME
from smollm3.text.tool_calls import ToolCall, read_calls

Kind = Literal["reasoning", "content", "tool_call"]

_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<code>", "</code>")
_TAG = re.compile("|".join(map(re.escape, _TAGS)))
_BEGINNINGS = frozenset(tag[:end] for tag in _TAGS for end in range(1, len(tag)))
_LONGEST_TAG = max(map(len, _TAGS))
_BLANKS = " \t\r\n"
_IN_CALL = re.compile(r"""["']|</?tool_call>|</think>""")
_IN_STRING = {
    '"': re.compile(r'\\.|"|</tool_call>', re.DOTALL),
    "'": re.compile(r"\\.|'|</tool_call>", re.DOTALL),
}
_IN_CODE = re.compile("</code>")
# How often a `</tool_call>` inside a string of a call's JSON may turn out to have ended the call after all,
# and how many characters may be read as Python literals: both keep hostile text linear.
_MAX_REWINDS = 2
_MAX_PYTHON_CHARS = 50_000


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: text of its kind, or one whole tool call."""

    kind: Kind
    text: str = ""
    tool_call: ToolCall | None = None


@dataclass(frozen=True)
class ParsedResponse:
    """A whole answer in its parts; a part that is missing is empty."""

    reasoning: str
    content: str
    tool_calls: tuple[ToolCall, ...]


class ResponseParser:
    """Splits an answer while it streams.

    `thinking_open`: the prompt ended inside `<think>`. `tool_calls`, `code`: whether `<tool_call>` and
    `<code>` are calls, or just text (an answer about HTML has `<code>` in it).
    """

    def __init__(self, *, thinking_open: bool = False, tool_calls: bool = True, code: bool = True) -> None:
        self._mode: Literal["reasoning", "content", "call", "code"] = (
            "reasoning" if thinking_open else "content"
        )
        self._outer: Literal["reasoning", "content"] = "content"
        self._tool_calls = tool_calls
        self._code = code
        self._buffer = ""
        self._position = 0
        self._final = False
        self._num_calls = 0
        # Blanks wait: they are shown between words, and dropped around tags.
        self._blanks: list[str] = []
        self._fresh = True
        self._after_tag = thinking_open
        self._shown: set[Kind] = set()
        # The body of the open call or code block.
        self._body: list[str] = []
        self._body_size = 0
        self._first_char = ""
        self._quote = ""
        self._first_close: int | None = None
        self._before: tuple[list[str], bool, bool] = ([], True, thinking_open)
        self._rewinds_left = _MAX_REWINDS
        self._python_chars_left = _MAX_PYTHON_CHARS
        self._out: list[Delta] = []

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside thoughts."""
        return self._mode == "reasoning" or (self._mode == "call" and self._outer == "reasoning")

    def push(self, text: str) -> list[Delta]:
        """Take more text and give the deltas that are certain now."""
        if self._mode in ("reasoning", "content") and "<" not in text and self._position == len(self._buffer):
            # Words, nearly always: no tag can begin or end here.
            self._show("reasoning" if self._mode == "reasoning" else "content", text)
            return self._take()
        self._buffer = self._buffer[self._position :] + text
        self._position = 0
        self._run()
        return self._take()

    def finish(self) -> list[Delta]:
        """Give what was held back, and the call that was left open."""
        self._final = True
        self._run()
        while self._mode in ("call", "code"):
            self._end_block(tag="")
            self._run()
        if self._mode == "content" and not (self._fresh and self._after_tag):
            self._out.append(Delta("content", "".join(self._blanks)))
        self._blanks = []
        return self._take()

    def _take(self) -> list[Delta]:
        """The deltas so far, neighbours of one kind joined."""
        deltas, self._out = self._out, []
        if len(deltas) < 2:
            return [delta for delta in deltas if delta.text or delta.tool_call]
        return [Delta(*run) for run in _runs(deltas) if run[1] or run[2]]

    def _run(self) -> None:
        while self._position < len(self._buffer):
            text = self._mode in ("reasoning", "content")
            if not (self._read_text() if text else self._read_block()):
                break

    # Text: reasoning and content

    def _read_text(self) -> bool:
        """Read on to the next tag; False if there is none."""
        kind: Literal["reasoning", "content"] = "reasoning" if self._mode == "reasoning" else "content"
        match = _TAG.search(self._buffer, self._position)
        end = match.start() if match else self._certain_end()
        self._show(kind, self._buffer[self._position : end])
        self._position = match.end() if match else end
        if match and not self._follow_tag(kind, match.group()):
            self._show(kind, match.group())
        return match is not None

    def _follow_tag(self, kind: Literal["reasoning", "content"], tag: str) -> bool:
        """Change the mode as a tag says; False for a tag that is just text here."""
        if tag == "</think>" and kind == "reasoning":
            self._enter("content")
        elif tag == "<think>" and self._fresh:
            # An answer opens its thoughts before it says anything, perhaps again after the prompt did.
            self._enter("reasoning")
        elif tag == "<tool_call>" and self._tool_calls:
            self._outer = kind
            self._enter("call")
        elif tag == "<code>" and self._code and kind == "content":
            self._outer = kind
            self._enter("code")
        else:
            return False
        return True

    def _enter(self, mode: Literal["reasoning", "content", "call", "code"]) -> None:
        self._before = (self._blanks, self._fresh, self._after_tag)
        self._mode = mode
        self._blanks = []
        self._fresh = self._after_tag = True
        self._body = []
        self._body_size = 0
        self._first_char = self._quote = ""
        self._first_close = None

    def _show(self, kind: Kind, text: str) -> None:
        words = text.rstrip(_BLANKS)
        if not words:
            if text:
                self._blanks.append(text)
            return
        if self._fresh and self._after_tag:
            lead = "\n" if kind in self._shown else ""
            words = words.lstrip(_BLANKS)
        else:
            lead = "".join(self._blanks)
        tail = text[len(text.rstrip(_BLANKS)) :]
        self._blanks = [tail] if tail else []
        self._fresh = False
        self._shown.add(kind)
        self._out.append(Delta(kind, lead + words))

    def _certain_end(self) -> int:
        """Where the buffer's end may be the start of a tag."""
        size = len(self._buffer)
        if self._final:
            return size
        start = self._buffer.rfind("<", max(self._position, size - _LONGEST_TAG))
        return start if start >= 0 and self._buffer[start:] in _BEGINNINGS else size

    # Blocks: <tool_call> and <code>

    def _read_block(self) -> bool:
        """Read on to the next token that matters, a quote, an escape or a tag; False if there is none."""
        pattern = _IN_CODE if self._mode == "code" else _IN_STRING.get(self._quote, _IN_CALL)
        match = pattern.search(self._buffer, self._position)
        if match is None:
            end = self._certain_end()
            if self._quote and not self._final and self._buffer.endswith("\\"):
                # The escape's other half is still to come; a lone one can only be the last character.
                end = min(end, len(self._buffer) - 1)
            self._keep(self._buffer[self._position : end])
            self._position = end
            return False
        token = match.group()
        self._keep(self._buffer[self._position : match.start()])
        self._position = match.end()
        if not token.startswith("<"):
            # Words in place of JSON have apostrophes, not strings.
            if token[0] != "\\" and self._first_char in ("{", "["):
                self._quote = "" if self._quote else token
            self._keep(token)
        elif self._quote and self._rewinds_left:
            if self._first_close is None:
                self._first_close = self._body_size
            self._keep(token)
        else:
            self._end_block(token)
        return True

    def _keep(self, text: str) -> None:
        if text:
            self._body.append(text)
            self._body_size += len(text)
            self._first_char = self._first_char or text.lstrip()[:1]

    def _end_block(self, tag: str) -> None:
        """Turn the body into calls, or back into text; `tag` ends it (empty at the end of the answer)."""
        body, mode, first_close = "".join(self._body), self._mode, self._first_close
        own_tag = "</code>" if mode == "code" else "</tool_call>"
        if tag and tag != own_tag:
            # A tag that a call cannot contain is read again: the next call, or the end of the thoughts.
            self._position -= len(tag)
            tag = ""
        if mode == "code":
            code = body.strip("\r\n")
            calls, rest = [(CODE_TOOL_NAME, json.dumps({"code": code}, ensure_ascii=False))], ""
        else:
            calls, rest = read_calls(body, python_chars=self._python_chars_left)
            if not calls:
                self._python_chars_left -= min(len(body), self._python_chars_left)
        if calls:
            for name, arguments in calls:
                call = ToolCall(name, arguments, self._num_calls, closed=bool(tag))
                self._out.append(Delta("tool_call", tool_call=call))
                self._num_calls += 1
            self._enter(self._outer)
            if rest:
                self._show(self._outer, rest)
        else:
            self._back_to_text(body, tag, first_close)

    def _back_to_text(self, body: str, tag: str, first_close: int | None) -> None:
        """Show a block that is no call as the text it is, up to where it may have ended first."""
        text = "<tool_call>" + body + tag
        if first_close is not None:
            self._rewinds_left -= 1
            cut = first_close + len("<tool_call></tool_call>")
            self._buffer = text[cut:] + self._buffer[self._position :]
            self._position = 0
            text = text[:cut]
        self._mode = self._outer
        self._blanks, self._fresh, self._after_tag = self._before
        self._show(self._outer, text)


def _runs(deltas: Iterable[Delta]) -> Iterable[tuple[Kind, str, ToolCall | None]]:
    """Join neighbouring texts of one kind."""
    kind: Kind | None = None
    texts: list[str] = []
    for delta in deltas:
        if texts and (delta.kind != kind or delta.tool_call):
            assert kind is not None
            yield kind, "".join(texts), None
            texts = []
        kind = delta.kind
        if delta.tool_call:
            yield kind, "", delta.tool_call
        else:
            texts.append(delta.text)
    if texts and kind is not None:
        yield kind, "".join(texts), None


def parse(
    text: str, *, thinking_open: bool = False, tool_calls: bool = True, code: bool = True
) -> ParsedResponse:
    """Split a whole answer; the arguments are those of `ResponseParser`."""
    parser = ResponseParser(thinking_open=thinking_open, tool_calls=tool_calls, code=code)
    deltas = parser.push(text) + parser.finish()
    return ParsedResponse(
        "".join(delta.text for delta in deltas if delta.kind == "reasoning"),
        "".join(delta.text for delta in deltas if delta.kind == "content"),
        tuple(delta.tool_call for delta in deltas if delta.tool_call),
    )
