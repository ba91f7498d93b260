"""What a tokenizer returns: ids and masks by name, and the way between tokens, words and characters.

A mapping with attributes; its values are lists, numpy arrays or torch tensors. Knows no tokenizer.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from tokenizers import Encoding

from smollm3.errors import DeviceError, ParameterError


class CharSpan(NamedTuple):
    """Characters `start` to `end` (exclusive) of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (exclusive) of a row."""

    start: int
    end: int


class BatchEncoding(MutableMapping[str, Any]):
    """`input_ids`, `attention_mask`, ... by key or attribute; `**encoding` passes them to a model.

    `encoding[0]` is the first row's `tokenizers.Encoding`, `encoding[:2]` a dict of the first two rows. What
    looks up tokens, words or characters takes a row and an index, or only an index for row 0.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encodings: Sequence[Encoding] | None = None,
        return_tensors: str | None = None,
    ) -> None:
        self.data: dict[str, Any] = dict(data or {})
        self.encodings = None if encodings is None else list(encodings)
        self.convert_to_tensors(return_tensors)

    # A mapping with attributes

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            return self.data[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.data.items()}
        return self._rows[item]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def __delitem__(self, key: str) -> None:
        del self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        # `data` is missing while an instance is being unpickled.
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(
            f"BatchEncoding has no {name!r}; it has {', '.join(self.__dict__.get('data', ()))}"
        )

    def __repr__(self) -> str:
        return f"BatchEncoding({self.data!r})"

    # Tensors

    def to(self, device: Any, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device, in place; return this encoding.

        Raises:
            DeviceError: `device` asks for CUDA and torch finds none.
        """
        for key, value in self.data.items():
            if hasattr(value, "to"):
                _check_cuda(device)
                self.data[key] = value.to(device=device, non_blocking=non_blocking)
        return self

    def convert_to_tensors(self, return_tensors: str | None) -> Self:
        """Turn the lists into torch tensors ("pt") or numpy arrays ("np"), in place; None leaves them."""
        if return_tensors is None:
            return self
        if return_tensors not in ("pt", "np"):
            raise ParameterError(
                f"return_tensors is {return_tensors!r}; choose 'pt' (torch), 'np' (numpy) or None"
            )
        for key, value in self.data.items():
            if isinstance(value, list | tuple):
                self.data[key] = _as_tensor(key, value, return_tensors)
        return self

    # Tokens, words and characters

    @property
    def _rows(self) -> list[Encoding]:
        if self.encodings is None:
            raise ParameterError(
                "this BatchEncoding holds no offsets: it was padded or built from ids, not from text"
            )
        return self.encodings

    def _row_and_index(self, row_or_index: int, index: int | None) -> tuple[Encoding, int]:
        return (self._rows[0], row_or_index) if index is None else (self._rows[row_or_index], index)

    def _row_and_token(self, row_or_token: int, token: int | None) -> tuple[Encoding, int]:
        row, token = self._row_and_index(row_or_token, token)
        return row, token + len(row.ids) if token < 0 else token

    @property
    def n_sequences(self) -> int | None:
        """How many texts each row holds: 1, or 2 for pairs; None when unknown."""
        return self.encodings[0].n_sequences if self.encodings else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, as they stand in the vocabulary."""
        return list(self._rows[batch_index].tokens)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: 0 or 1 for the text it comes from, None for special tokens and padding."""
        return list(self._rows[batch_index].sequence_ids)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: the index of its word, None for special tokens and padding."""
        return list(self._rows[batch_index].word_ids)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text of the row (0 or 1) a token comes from."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The index of a token's word in its text."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        found = row.token_to_word(token)
        return found[1] if isinstance(found, tuple) else found

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of a token in its text; None for special tokens and padding."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        found: Any = row.token_to_chars(token)  # some versions put the sequence before the span
        if found is None:
            return None
        span = found[1] if isinstance(found[1], tuple) else found
        return CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that holds a character of text `sequence_index`; None if no token does."""
        row, char = self._row_and_index(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that holds a character of text `sequence_index`; None if no word does."""
        row, char = self._row_and_index(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word; None if it has none."""
        row, word = self._row_and_index(batch_or_word_index, word_index)
        found = row.word_to_tokens(word, sequence_index)
        return None if found is None else TokenSpan(*found)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word; None if there is no such word."""
        row, word = self._row_and_index(batch_or_word_index, word_index)
        found = row.word_to_chars(word, sequence_index)
        return None if found is None else CharSpan(*found)


def _check_cuda(device: Any) -> None:
    import torch

    wanted = isinstance(device, int) or str(device).startswith("cuda")
    if wanted and not torch.cuda.is_available():
        raise DeviceError(f"device {device} asks for a CUDA GPU and there is none: pass .to(model.device)")


def _as_tensor(key: str, value: Any, kind: str) -> Any:
    try:
        array = np.array(value)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.dtype == object:
        raise ParameterError(
            f"the rows of {key} have different lengths and make no tensor: pass padding=True"
        )
    if array.size == 0:
        array = array.astype(np.int64)
    if kind == "np":
        return array
    import torch

    return torch.from_numpy(array)
