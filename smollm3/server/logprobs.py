"""Tokens with their log-probabilities, as chat completions and as plain completions spell them.

In: a step's tokens. Out: plain data. `bytes` is exact where a token is only part of a character.
"""

from collections.abc import Iterable
from typing import Any

from smollm3.server.work import Event, Token
from smollm3.text.tokenizer import Tokenizer

LEAST = -9999.0  # stands for minus infinity, which is no JSON


class ShownTokens:
    """Tells which of an answer's tokens are told of: not those of thoughts, and not the one that ends it."""

    def __init__(self, eos_token_ids: frozenset[int], *, reasoning: bool = False) -> None:
        self._eos_token_ids = eos_token_ids
        self._reasoning = reasoning
        self._num_reasoning = 0

    def of(self, event: Event) -> list[Token]:
        """Return the event's tokens that are shown; events of one choice, in order."""
        thoughts = event.num_reasoning > self._num_reasoning
        self._num_reasoning = event.num_reasoning
        if thoughts and not self._reasoning:
            return []
        ends = event.finish_reason == "stop" and event.stop_string is None
        return [
            token
            for place, token in enumerate(event.tokens, 1)
            if not (ends and place == len(event.tokens) and token.token_id in self._eos_token_ids)
        ]


def chat_logprobs(tokens: Iterable[Token], tokenizer: Tokenizer, num_top: int) -> list[dict[str, Any]]:
    """Return the entries of `logprobs.content`."""
    return [
        {
            "token": token.text,
            "logprob": number(token.logprob),
            "bytes": list(token.bytes),
            "top_logprobs": [
                _entry(tokenizer, token_id, logprob) for token_id, logprob in (token.top or ())[:num_top]
            ],
        }
        for token in tokens
    ]


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": number(logprob), "bytes": list(raw)}


def plain_logprobs(
    tokens: Iterable[Token], tokenizer: Tokenizer, num_top: int, text_offset: int
) -> dict[str, list[Any]]:
    """Return the four lists of a completion's `logprobs`; offsets count characters from `text_offset`."""
    lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        lists["tokens"].append(token.text)
        lists["token_logprobs"].append(number(token.logprob))
        lists["top_logprobs"].append(
            {
                tokenizer.token_bytes(token_id).decode("utf-8", "replace"): number(logprob)
                for token_id, logprob in (token.top or ())[:num_top]
            }
        )
        lists["text_offset"].append(text_offset)
        text_offset += len(token.text)
    return lists


def number(logprob: float | None) -> float:
    """Return a log-probability that JSON can spell."""
    return LEAST if logprob is None or not logprob > LEAST else logprob
