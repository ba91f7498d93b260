"""The named special tokens of a tokenizer: `bos_token`, `bos_token_id`, ... readable and settable.

A name stands for a token that is in the vocabulary, or for nothing (None).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tokenizers import AddedToken

from smollm3.errors import CheckpointError, ParameterError

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class HasSpecialTokens(Protocol):
    """A tokenizer, as far as this module needs it."""

    special_tokens: dict[str, str]

    def token_to_id(self, token: str) -> int | None: ...

    def id_to_token(self, token_id: int) -> str | None: ...


class SpecialToken:
    """`tokenizer.pad_token`: the token's text. Setting a text that is not in the vocabulary is an error."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, tokenizer: HasSpecialTokens, owner: type | None = None) -> str | None:
        return tokenizer.special_tokens.get(self._name)

    def __set__(self, tokenizer: HasSpecialTokens, value: str | AddedToken | None) -> None:
        if value is None:
            tokenizer.special_tokens.pop(self._name, None)
            return
        token = token_text(value)
        if token is None or tokenizer.token_to_id(token) is None:
            raise ParameterError(
                f"{self._name} {value!r} is not in the vocabulary: add it with "
                f"add_special_tokens({{{self._name!r}: {value!r}}}) and resize the model's embeddings"
            )
        tokenizer.special_tokens[self._name] = token


class SpecialTokenId:
    """`tokenizer.pad_token_id`: the same, by id."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.removesuffix("_id")

    def __get__(self, tokenizer: HasSpecialTokens, owner: type | None = None) -> int | None:
        token = tokenizer.special_tokens.get(self._name)
        return None if token is None else tokenizer.token_to_id(token)

    def __set__(self, tokenizer: HasSpecialTokens, value: int | None) -> None:
        token = None if value is None else tokenizer.id_to_token(value)
        if value is not None and token is None:
            raise ParameterError(f"{self._name}_id {value!r} is not an id of the vocabulary")
        setattr(tokenizer, self._name, token)


def token_text(value: Any) -> str | None:
    """The text of a token given as a string, an `AddedToken` or a mapping with `content`; else None."""
    if isinstance(value, str):
        return value
    if isinstance(value, AddedToken):
        return value.content
    content = value.get("content") if isinstance(value, Mapping) else None
    return content if isinstance(content, str) else None


def as_added_token(value: Any, *, where: str, special: bool = True) -> AddedToken:
    """Read a token as a JSON file spells it: a string, or a mapping with `content` and flags."""
    content = token_text(value)
    if not content:
        raise CheckpointError(
            f"{where}: {value!r} is not a token; write a string or an object with 'content'"
        )
    flags = value if isinstance(value, Mapping) else {}
    return AddedToken(
        content,
        single_word=bool(flags.get("single_word", False)),
        lstrip=bool(flags.get("lstrip", False)),
        rstrip=bool(flags.get("rstrip", False)),
        normalized=bool(flags.get("normalized", False)),
        special=bool(flags.get("special", special)),
    )


def named_special_tokens(config: Mapping[str, Any], *, where: str) -> dict[str, AddedToken]:
    """The named special tokens of a tokenizer_config.json or special_tokens_map.json; null means none."""
    return {
        name: as_added_token(config[name], where=f"{where}: {name}")
        for name in SPECIAL_TOKEN_NAMES
        if config.get(name) is not None
    }


def extra_special_tokens(config: Mapping[str, Any], *, where: str) -> list[AddedToken]:
    """The special tokens without a name of their own (`extra_special_tokens`, formerly `additional_...`)."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        listed = config.get(key)
        if not listed:
            continue
        values = list(listed.values()) if isinstance(listed, Mapping) else listed
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise CheckpointError(f"{where}: {key} is {listed!r}, not a list of tokens")
        return [as_added_token(value, where=f"{where}: {key}") for value in values]
    return []
