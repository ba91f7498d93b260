"""Token ids of one answer in, one at a time; its deltas out: detokenized, cut at stop strings, parsed.

The one piece behind every answer that is shown while it is made. Knows no model and no clock.
"""

from collections.abc import Iterable

from smollm3.text.detokenizer import Detokenizer
from smollm3.text.parser import Delta, ResponseParser
from smollm3.text.stops import StopMatcher
from smollm3.text.tokenizer import Tokenizer

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<code>", "</code>")


class AnswerText:
    """One answer's text: `push` each id, `finish` after the last.

    `parser` splits thoughts, content and tool calls; without one all text is content. Special tokens have no
    text, except the tags that the parser reads; `eos_token_ids` never have any.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_strings: Iterable[str] = (),
        parser: ResponseParser | None = None,
        eos_token_ids: Iterable[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        hidden = set(tokenizer.special_ids) if skip_special_tokens else set()
        if parser is not None:
            hidden.difference_update(tokenizer.token_to_id(tag) for tag in TAGS)
        self._detokenizer = Detokenizer(tokenizer, hidden_ids=hidden.union(eos_token_ids))
        self._matcher = StopMatcher(stop_strings)
        self._parser = parser

    @property
    def stop_string(self) -> str | None:
        """The stop string that was found: nothing after it counts."""
        return self._matcher.matched

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside thoughts."""
        return self._parser is not None and self._parser.thinking

    def push(self, token_id: int) -> list[Delta]:
        """Take the next id; return what is certain and safe to show by now."""
        return self._parsed(self._matcher.push(self._detokenizer.push(token_id)))

    def finish(self) -> list[Delta]:
        """Return what was held back; the answer ends here."""
        deltas = self._parsed(self._matcher.push(self._detokenizer.finish()) + self._matcher.finish())
        return deltas + self._parser.finish() if self._parser else deltas

    def _parsed(self, text: str) -> list[Delta]:
        if not text:
            return []
        return self._parser.push(text) if self._parser else [Delta("content", text)]
