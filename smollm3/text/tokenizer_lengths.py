"""Encodings in, encodings of agreed lengths out: truncation with overflow, and padding.

Works on `tokenizers.Encoding`s before (truncation) and after (padding) special tokens are put around them.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tokenizers import Encoding

from smollm3.errors import ParameterError

STRATEGIES = ("longest_first", "only_first", "only_second")
SIDES = ("left", "right")
UNLIMITED = int(1e30)  # model_max_length of a tokenizer that names none, as HF writes it
_LONGEST_ROW = 2**24
_NO_LIMIT = int(1e20)  # whatever is above this is no limit


@dataclass(frozen=True)
class Truncation:
    """Cut inputs to `max_length` ids, special tokens included.

    What is cut off goes on in the encoding's `overflowing` windows, each of which repeats `stride` ids.
    """

    max_length: int
    strategy: str = "longest_first"
    stride: int = 0
    side: str = "right"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ParameterError(
                f"truncation {self.strategy!r} is unknown; choose from {', '.join(STRATEGIES)}"
            )
        if self.max_length < 0:
            raise ParameterError(
                f"max_length is {self.max_length}; give the number of ids to keep, at least 0"
            )
        if not self.stride >= 0:
            raise ParameterError(
                f"stride is {self.stride}; give the number of ids that windows share, at least 0"
            )


@dataclass(frozen=True)
class Padding:
    """Fill rows with `pad_token` up to `length`, or to the longest row if that is None."""

    pad_token: str
    pad_token_id: int
    length: int | None = None
    multiple_of: int | None = None
    side: str = "right"

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ParameterError(f"padding_side is {self.side!r}; choose 'left' or 'right'")
        if self.multiple_of is not None and self.multiple_of < 1:
            raise ParameterError(f"pad_to_multiple_of is {self.multiple_of}; give a number of at least 1")


def truncate(first: Encoding, second: Encoding | None, truncation: Truncation, *, num_added: int) -> None:
    """Shorten a text, or a pair, in place so that with `num_added` special tokens it fits."""
    room = truncation.max_length - num_added
    if room < 0:
        raise ParameterError(
            f"max_length {truncation.max_length} leaves no room for the {num_added} special tokens; raise it"
        )
    num_first, num_second = len(first.ids), 0 if second is None else len(second.ids)
    if num_first + num_second <= room:
        return
    keep_first, keep_second = _shares(num_first, num_second, room, truncation, is_pair=second is not None)
    _cut(first, keep_first, truncation)
    if second is not None:
        _cut(second, keep_second, truncation)


def _shares(
    num_first: int, num_second: int, room: int, truncation: Truncation, *, is_pair: bool
) -> tuple[int, int]:
    """How many ids of each text to keep."""
    if truncation.strategy == "longest_first":
        if not is_pair:
            return room, 0
        # Cut the longer one down to the other's length, then share what is left equally.
        shorter = min(num_first, num_second, room // 2)
        longer = room - shorter
        return (shorter, longer) if num_first <= num_second else (longer, shorter)
    if truncation.strategy == "only_second" and not is_pair:
        raise ParameterError(
            "truncation 'only_second' needs a second text; pass text_pair or choose 'only_first'"
        )
    cut_first = truncation.strategy == "only_first"
    keep = room - (num_second if cut_first else num_first)
    if keep <= 0:
        raise ParameterError(
            f"max_length {truncation.max_length} is too small for truncation {truncation.strategy!r}: the "
            f"other text alone has {num_second if cut_first else num_first} ids; raise it or cut that one"
        )
    return (keep, num_second) if cut_first else (num_first, keep)


def _cut(encoding: Encoding, keep: int, truncation: Truncation) -> None:
    if keep >= len(encoding.ids):
        return
    if truncation.stride >= keep > 0:
        raise ParameterError(
            f"stride {truncation.stride} is not smaller than the {keep} ids that max_length leaves a window; "
            "lower stride or raise max_length"
        )
    encoding.truncate(keep, stride=truncation.stride, direction=truncation.side)


def pad(encodings: Sequence[Encoding], padding: Padding) -> None:
    """Lengthen the encodings, and their overflowing windows, in place to one length."""
    length = _target_length(padding, [len(encoding.ids) for encoding in encodings])
    direction: Literal["left", "right"] = "left" if padding.side == "left" else "right"
    for encoding in encodings:
        encoding.pad(length, direction=direction, pad_id=padding.pad_token_id, pad_token=padding.pad_token)


def pad_rows(rows: Mapping[str, list[list[int]]], padding: Padding) -> dict[str, list[list[int]]]:
    """Pad rows that are lists of ids and masks already; other keys stay as they are."""
    fillers = {
        "input_ids": padding.pad_token_id,
        "attention_mask": 0,
        "token_type_ids": 0,
        "special_tokens_mask": 1,
    }
    length = _target_length(padding, [len(row) for row in rows["input_ids"]])

    def padded(row: list[int], filler: int) -> list[int]:
        fill = [filler] * (length - len(row))
        return fill + row if padding.side == "left" else row + fill

    return {
        key: [padded(row, fillers[key]) for row in values] if key in fillers else values
        for key, values in rows.items()
    }


def _target_length(padding: Padding, lengths: Sequence[int]) -> int:
    length = max(lengths, default=0) if padding.length is None else padding.length
    if padding.multiple_of:
        length = -(-length // padding.multiple_of) * padding.multiple_of
    if length > _LONGEST_ROW:
        raise ParameterError(f"padding to {length} ids is more than any model reads; lower max_length")
    return length


class PaddingTokenizer(Protocol):
    """A tokenizer, as far as padding and truncation need it."""

    model_max_length: int

    @property
    def pad_token(self) -> str | None: ...

    @property
    def pad_token_id(self) -> int | None: ...

    @property
    def padding_side(self) -> str: ...

    @property
    def truncation_side(self) -> str: ...


def plan_truncation(
    tokenizer: PaddingTokenizer, truncation: bool | str | None, max_length: int | None, stride: int
) -> Truncation | None:
    """Read a call's truncation arguments; None where nothing is to be cut."""
    limit = tokenizer.model_max_length if max_length is None else max_length
    if truncation in (None, False, "do_not_truncate") or limit >= _NO_LIMIT:
        return None
    strategy = "longest_first" if truncation is True else str(truncation)
    return Truncation(limit, strategy, stride, tokenizer.truncation_side)


def plan_padding(
    tokenizer: PaddingTokenizer,
    padding: bool | str,
    max_length: int | None,
    multiple_of: int | None,
    side: str | None,
    truncation: Truncation | None,
) -> Padding | None:
    """Read a call's padding arguments; None where nothing is to be padded."""
    if padding is False or padding == "do_not_pad":
        return None
    if padding not in (True, "longest", "max_length"):
        raise ParameterError(f"padding is {padding!r}; choose True, False, 'longest' or 'max_length'")
    if tokenizer.pad_token is None or tokenizer.pad_token_id is None:
        raise ParameterError(
            "padding needs a pad token; set one, as in tokenizer.pad_token = tokenizer.eos_token"
        )
    length = None
    if padding == "max_length":
        length = tokenizer.model_max_length if max_length is None else max_length
        if length >= _NO_LIMIT:
            raise ParameterError(
                "padding='max_length' needs max_length: this tokenizer names no length of its own"
            )
    elif max_length is not None and truncation is None:
        warnings.warn(
            "max_length does nothing with this padding; pass truncation=True or padding='max_length'",
            stacklevel=3,
        )
    if truncation is not None and multiple_of and truncation.max_length % multiple_of:
        raise ParameterError(
            f"max_length {truncation.max_length} is no multiple of pad_to_multiple_of {multiple_of}"
        )
    return Padding(
        tokenizer.pad_token, tokenizer.pad_token_id, length, multiple_of, side or tokenizer.padding_side
    )
