"""Token ids in, one at a time; text out as soon as it is certain.

A character whose bytes are spread over tokens comes with its last byte; bytes that cannot become a
character are U+FFFD at once. All pieces together are `tokenizer.decode` of all ids; each id costs the same.
"""

import codecs
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a model without a tokenizer never needs its library
    from smollm3.text.tokenizer import Tokenizer


class Detokenizer:
    """Stream ids to text: `push` each id, `finish` at the end. `hidden_ids` have no text."""

    def __init__(
        self, tokenizer: "Tokenizer", skip_special_tokens: bool = False, *, hidden_ids: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = frozenset(hidden_ids) | (
            tokenizer.special_ids if skip_special_tokens else frozenset()
        )
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that it completes, which may be empty."""
        if token_id in self._skipped:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character that was never completed. Ready for the next stream."""
        return self._utf8.decode(b"", final=True)
