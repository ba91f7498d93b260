"""A limit on how long a model thinks: a constraint that counts ids inside `<think>` and then closes it.

Goes by the text, as `text/parser.py` does, so tags may be one id or several. Wraps another constraint, which
goes on after the thoughts. Knows no engine.
"""

import codecs
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from smollm3.errors import ParameterError
from smollm3.text.tokenizer import Tokenizer
from smollm3.text.tokenizer_bytes import BYTE_OF_CHAR

_OPEN, _CLOSE = "<think>", "</think>"
_BLANKS = " \t\r\n"


class Inner(Protocol):
    """What a budget can wrap; see `text/grammar.py`."""

    def mask(self) -> NDArray[np.uint32] | None: ...

    def accept(self, token_id: int) -> None: ...

    @property
    def ended(self) -> bool: ...

    def fork(self) -> "Inner": ...


class ThinkingBudget:
    """Closes the thoughts after `budget` ids of them; has no say in what comes before and after."""

    def __init__(
        self, tokenizer: Tokenizer, budget: int, thinking_open: bool, inner: Inner | None = None
    ) -> None:
        """budget: ids inside the thoughts, at least 0. thinking_open: the prompt ended inside `<think>`."""
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise ParameterError(f"thinking budget={budget!r}: give a whole number of at least 0")
        self._tokenizer = tokenizer
        self._left = budget
        self._inner = inner
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # Before the thoughts, where only blanks and `<think>` may come; in them; or past them for good.
        self._place: Literal["before", "inside", "past"] = "inside" if thinking_open else "before"
        self._tail = ""  # the end of the text, as long as a tag may need it
        self._forced: list[int] = []

    def mask(self) -> NDArray[np.uint32] | None:
        """The one id that closes the thoughts, when they are used up; else what the inner constraint says."""
        if self._place == "inside" and self._left <= 0 and not self._forced:
            if self._cut_character and self._inner is not None:
                return self._completing_mask(self._inner.mask())
            self._forced = self._closing_ids()
        if self._forced:
            return _bits([self._forced[0]])
        return None if self._inner is None else self._inner.mask()

    def accept(self, token_id: int) -> None:
        """Take in the id that was chosen. Raises what the inner constraint raises."""
        if self._forced and token_id != self._forced[0]:
            raise ParameterError(
                f"token id {token_id} is not {self._forced[0]}, which closes the thoughts here"
            )
        if self._inner is not None:
            self._inner.accept(token_id)
        if self._forced:
            self._forced.pop(0)
            if not self._forced:
                self._place, self._tail = "before", ""
                self._utf8.reset()
        elif self._place != "past":
            self._left -= self._place == "inside"
            self._read(self._utf8.decode(self._tokenizer.token_bytes(token_id)))

    @property
    def ended(self) -> bool:
        """Whether the inner constraint's answer is complete."""
        return self._inner is not None and self._inner.ended

    def fork(self) -> "ThinkingBudget":
        """Copy the state; the copy goes its own way."""
        inner = None if self._inner is None else self._inner.fork()
        fork = ThinkingBudget(self._tokenizer, max(self._left, 0), False, inner)
        fork._utf8.setstate(self._utf8.getstate())
        fork._place, fork._tail, fork._forced = self._place, self._tail, list(self._forced)
        return fork

    def _read(self, text: str) -> None:
        """Follow the tags in new text."""
        self._tail += text
        while self._place != "past":
            if self._place == "before":
                words = self._tail.lstrip(_BLANKS)
                if words.startswith(_OPEN):
                    self._place, self._tail = "inside", words[len(_OPEN) :]
                elif _OPEN.startswith(words):
                    return
                else:
                    self._place = "past"
            else:
                before, tag, after = self._tail.partition(_CLOSE)
                if not tag:
                    self._tail = before[-len(_CLOSE) :]
                    return
                # Whoever thinks again, before any word, goes on with what is left of the budget.
                self._place, self._tail = "before", after
        self._tail = ""

    @property
    def _cut_character(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def _closing_ids(self) -> list[int]:
        """The rest of the closing tag if it is begun; else the tag on a line of its own, as templates do."""
        begun = next((end for end in range(len(_CLOSE) - 1, 1, -1) if self._tail.endswith(_CLOSE[:end])), 0)
        line = "" if begun or self._tail.endswith("\n") else "\n"
        return self._tokenizer.encode(f"{line}{_CLOSE[begun:]}\n", add_special_tokens=False)

    def _completing_mask(self, allowed: NDArray[np.uint32] | None) -> NDArray[np.uint32]:
        """A character is cut in the middle: only its next byte, and nothing after it, may come."""
        ids = (
            self._tokenizer.token_to_id(char) for char, byte in BYTE_OF_CHAR.items() if 0x80 <= byte <= 0xBF
        )
        bits = _bits([token_id for token_id in ids if token_id is not None])
        if allowed is not None:
            size = min(len(bits), len(allowed))
            bits = bits[:size] & allowed[:size]
        return bits


def _bits(token_ids: list[int]) -> NDArray[np.uint32]:
    """A mask that allows some ids, as long as it must be."""
    bits = np.zeros(max(token_ids, default=0) // 32 + 1, np.uint32)
    for token_id in token_ids:
        bits[token_id // 32] |= np.uint32(1 << (token_id % 32))
    return bits
