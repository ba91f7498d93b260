"""Text as it is generated, for `generate(streamer=...)`: HF's protocol of put() and end().

In: tensors of ids, first the prompt, then one id at a time. Out: text in pieces that never split a character.
A consumer that can pull needs none of this: `model.stream` and the pipeline's `stream` are iterators.
"""

import sys
from collections.abc import Iterator
from queue import Empty, Queue
from typing import Any, TextIO

from smollm3.errors import ParameterError
from smollm3.text.detokenizer import Detokenizer


class TextStreamer:
    """Writes text to a file as it comes; a subclass may override `on_finalized_text`.

    Args:
        tokenizer: what the ids belong to.
        skip_prompt: leave the prompt out.
        skip_special_tokens: leave special tokens out of the text.
        file: where to write; standard output by default.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        *,
        skip_special_tokens: bool = False,
        file: TextIO | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.skip_special_tokens = skip_special_tokens
        self.file = file
        self._detokenizer: Detokenizer | None = None  # None: the next ids are a prompt

    def put(self, value: Any) -> None:
        """Take in ids: a tensor [T] or [1, T], or a list; the first call is the prompt's."""
        ids = value.tolist() if hasattr(value, "tolist") else value
        ids = ids if isinstance(ids, list) else [ids]
        if ids and isinstance(ids[0], list):
            if len(ids) > 1:
                raise ParameterError(
                    f"a streamer follows one row and was given {len(ids)}: stream one prompt"
                )
            ids = ids[0]
        is_prompt = self._detokenizer is None
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(self.tokenizer, self.skip_special_tokens)
        if is_prompt and self.skip_prompt:
            return
        text = "".join([self._detokenizer.push(token_id) for token_id in ids])
        if text:
            self.on_finalized_text(text)

    def end(self) -> None:
        """Give out what was held back; the next put() starts a new prompt."""
        rest = self._detokenizer.finish() if self._detokenizer is not None else ""
        self._detokenizer = None
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write a piece of text, and a newline at the end."""
        print(text, end="\n" if stream_end else "", flush=True, file=self.file or sys.stdout)


class TextIteratorStreamer(TextStreamer):
    """Hands text over to another thread, which iterates over it.

    Args:
        timeout: seconds to wait for the next piece before TimeoutError; None waits for ever.

    An exception of the generating thread is raised in the iterating one.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        *,
        skip_special_tokens: bool = False,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, skip_special_tokens=skip_special_tokens)
        self.timeout = timeout
        self.text_queue: Queue[str | BaseException | None] = Queue()  # None ends it

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue a piece of text, and the end."""
        if text:
            self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def fail(self, error: BaseException) -> None:
        """Pass an exception on to whoever iterates."""
        self._detokenizer = None
        self.text_queue.put(error)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            item = self.text_queue.get(timeout=self.timeout)
        except Empty:
            raise TimeoutError(f"no text within {self.timeout} s: is generation still running?") from None
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item
