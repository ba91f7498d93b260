"""The vocabulary of a tokenizer: its size, its ids and tokens, its named special tokens and its added tokens.

Stands on one `tokenizers.Tokenizer`; knows nothing of texts longer than a token.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from smollm3.errors import ParameterError
from smollm3.text.special_tokens import (
    SpecialToken,
    SpecialTokenId,
    extra_special_tokens,
    named_special_tokens,
)
from smollm3.text.tokenizer_bytes import bytes_of_token


class Vocabulary:
    """Ids and tokens. `special_tokens` maps `bos_token`, `eos_token`, ... to their texts."""

    bos_token, bos_token_id = SpecialToken(), SpecialTokenId()
    eos_token, eos_token_id = SpecialToken(), SpecialTokenId()
    unk_token, unk_token_id = SpecialToken(), SpecialTokenId()
    sep_token, sep_token_id = SpecialToken(), SpecialTokenId()
    pad_token, pad_token_id = SpecialToken(), SpecialTokenId()
    cls_token, cls_token_id = SpecialToken(), SpecialTokenId()
    mask_token, mask_token_id = SpecialToken(), SpecialTokenId()

    def __init__(
        self, backend: Backend, special_tokens: Mapping[str, str], extra_special_tokens: Sequence[str]
    ) -> None:
        self._backend = backend
        self.special_tokens: dict[str, str] = {}
        for name, token in special_tokens.items():
            setattr(self, name, token)
        self.extra_special_tokens = list(extra_special_tokens)

    def __len__(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    @property
    def vocab_size(self) -> int:
        """Number of tokens without the added ones."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included, tokens in the byte alphabet of byte-level BPE."""
        return self._backend.get_vocab(with_added_tokens=True)

    # Special and added tokens

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The named special tokens, and the others under `extra_special_tokens` if there are any."""
        extra = {"extra_special_tokens": list(self.extra_special_tokens)} if self.extra_special_tokens else {}
        return {**self.special_tokens, **extra}

    @property
    def all_special_tokens(self) -> list[str]:
        """The named and extra special tokens, each once."""
        return list(dict.fromkeys([*self.special_tokens.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [
            token_id for token in self.all_special_tokens if (token_id := self.token_to_id(token)) is not None
        ]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> added token: those that are matched whole in a text, special or not."""
        return self._backend.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Added token -> id."""
        return {token.content: token_id for token_id, token in sorted(self.added_tokens_decoder.items())}

    @property
    def added_tokens(self) -> dict[str, int]:
        """Added token -> id, like `added_tokens_encoder`."""
        return self.added_tokens_encoder

    def get_added_vocab(self) -> dict[str, int]:
        """Added token -> id, like `added_tokens_encoder`."""
        return self.added_tokens_encoder

    def add_tokens(
        self, tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Append tokens to the vocabulary; return how many are new (rows that a model lacks)."""
        listed = [tokens] if isinstance(tokens, str | AddedToken) else list(tokens)
        known, size = self.added_tokens_encoder, len(self)
        if special_tokens:
            self._backend.add_special_tokens(listed)
        else:  # a plain string would take the flags of an added token away
            self._backend.add_tokens([token for token in listed if token not in known])
        for cached in ("_plain_backend", "special_ids", "_bytes_of_id", "_longest_token"):
            self.__dict__.pop(cached, None)
        return len(self) - size

    def add_special_tokens(self, special_tokens: Mapping[str, Any]) -> int:
        """Add and name special tokens: `{"pad_token": "<|pad|>", "extra_special_tokens": [...]}`."""
        where = "add_special_tokens"
        named = named_special_tokens(special_tokens, where=where)
        extra = extra_special_tokens(special_tokens, where=where)
        if (
            unknown := set(special_tokens)
            - set(named)
            - {"extra_special_tokens", "additional_special_tokens"}
        ):
            raise ParameterError(f"add_special_tokens: {sorted(unknown)} are no names of special tokens")
        added = self.add_tokens([*named.values(), *extra], special_tokens=True)
        for name, token in named.items():
            setattr(self, name, token.content)
        if extra:
            self.extra_special_tokens = [token.content for token in extra]
        return added

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, or None."""
        return self._backend.id_to_token(checked_ids([token_id])[0])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for an id beyond the vocabulary."""
        known = self._bytes_of_id.get(token_id)
        if known is None:
            token = self.id_to_token(token_id)
            known = self._bytes_of_id[token_id] = b"" if token is None else bytes_of_token(token)
        return known

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode(..., skip_special_tokens=True)` leaves out."""
        return frozenset(token_id for token_id, token in self.added_tokens_decoder.items() if token.special)

    @cached_property
    def _bytes_of_id(self) -> dict[int, bytes]:
        return {}

    @cached_property
    def _longest_token(self) -> int:
        return max(len(bytes_of_token(token)) for token in self.get_vocab())


def checked_ids(token_ids: Iterable[Any]) -> list[int]:
    """Ids as plain ints of at least 0 that fit 32 bits; anything else is an error that names it."""
    ids = []
    for token_id in token_ids:
        try:
            number = operator.index(token_id)
        except TypeError:
            number = -1
        if not 0 <= number < 2**32:
            raise ParameterError(
                f"token id {token_id!r} is not a whole number of at least 0; pass ids to decode"
            )
        ids.append(number)
    return ids
