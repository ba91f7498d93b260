"""Tokens with their log-probabilities, as chat completions and as plain completions spell them.

In: a step's tokens. Out: plain data. `bytes` is exact where a token is only part of a character.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from smollm3.engine.reading import PromptScores
from smollm3.server.work import Event, Token
from smollm3.text.detokenizer import Detokenizer
from smollm3.text.tokenizer import Tokenizer

LEAST = -9999.0  # stands for minus infinity, which is no JSON


class ShownTokens:
    """Tells which of an answer's tokens are told of: not those of thoughts, and not the one that ends it."""

    def __init__(
        self, eos_token_ids: frozenset[int], *, reasoning: bool = False, ending: bool = False
    ) -> None:
        """`reasoning`: tell of thoughts too. `ending`: also of the token that ends the answer."""
        self._eos_token_ids = frozenset() if ending else eos_token_ids
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


class TextOffsets:
    """Where each token's text begins, in characters; one inside of a character has that character's place."""

    def __init__(self, tokenizer: Tokenizer, start: int = 0, hidden_ids: Collection[int] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer, hidden_ids=hidden_ids)
        self.end = start  # of the whole characters so far

    def next(self, token_id: int) -> int:
        """Take in a token; return its place."""
        start = self.end
        self.end += len(self._detokenizer.push(token_id))
        return start


def plain_logprobs(
    tokens: Iterable[Token], tokenizer: Tokenizer, num_top: int, offsets: TextOffsets
) -> dict[str, list[Any]]:
    """Return the four lists of a completion's `logprobs`; a token without a score (the first) has null."""
    lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        lists["tokens"].append(_spelled(token.bytes))
        lists["token_logprobs"].append(None if token.logprob is None else number(token.logprob))
        top: dict[str, float] = {}
        for token_id, logprob in (token.top or ())[:num_top]:
            top.setdefault(_spelled(tokenizer.token_bytes(token_id)), number(logprob))
        lists["top_logprobs"].append(None if token.top is None else top)
        lists["text_offset"].append(offsets.next(token.token_id))
    return lists


def prompt_tokens(
    prompt_ids: Sequence[int], scores: PromptScores, tokenizer: Tokenizer, start: int, end: int
) -> list[Token]:
    """Return a stretch of a scored prompt's tokens; the first of all has no score."""
    tokens = []
    first = max(start - 1, 0)  # the first id has no row
    rows = zip(
        scores.logprobs[first : end - 1].tolist(),
        scores.top_ids[first : end - 1].tolist(),
        scores.top_logprobs[first : end - 1].tolist(),
        strict=True,
    )
    for place in range(start, end):
        raw = tokenizer.token_bytes(prompt_ids[place])
        logprob, top = None, None
        if place:
            logprob, top_ids, top_logprobs = next(rows)
            top = tuple(zip(top_ids, top_logprobs, strict=True))
        tokens.append(Token(prompt_ids[place], raw.decode("utf-8", "replace"), raw, logprob, top))
    return tokens


def _spelled(raw: bytes) -> str:
    """A token's text, or OpenAI's spelling of bytes that are only part of a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def number(logprob: float | None) -> float:
    """Return a log-probability that JSON can spell."""
    return LEAST if logprob is None or not logprob > LEAST else logprob
