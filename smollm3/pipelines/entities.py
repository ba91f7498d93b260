"""From scores per token to entities: words, tags, groups, and what several windows say about one place.

In: tokens with their label scores and character offsets. Out: dicts as transformers' pipeline gives them.
Pure functions; they know no model, and of the tokenizer only how ids become text.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRATEGIES = ("none", "simple", "first", "average", "max")
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Token:
    """One token of a text: its place among the window's tokens, scores [C], and characters [start, end)."""

    idx: int
    token_id: int
    scores: NDArray[np.float32]
    start: int
    end: int
    continues_word: bool


@dataclass(frozen=True)
class Word:
    """Tokens that got one label together."""

    tokens: Sequence[Token]
    label: str
    score: float

    @property
    def tag(self) -> str:
        """The label without the B- or I- that says whether an entity begins here."""
        return self.label[2:] if self.label[:2] in ("B-", "I-") else self.label

    @property
    def begins(self) -> bool:
        """Whether the label says that an entity begins here."""
        return self.label.startswith("B-")


def label_tokens(
    tokens: Iterable[Token], id2label: Mapping[int, str], token_text: Callable[[int], str]
) -> list[Any]:
    """Return one dict per token, with its likeliest label: strategy "none"."""
    return [
        {
            "entity": id2label[int(token.scores.argmax())],
            "score": float(token.scores.max()),
            "index": token.idx,
            "word": token_text(token.token_id),
            "start": token.start,
            "end": token.end,
        }
        for token in tokens
    ]


def find_entities(
    tokens: Iterable[Token], strategy: str, id2label: Mapping[int, str], decode: Decode
) -> list[Any]:
    """Return one dict per entity (and per run of tokens without one): any strategy but "none"."""
    words = [label_word(word, strategy, id2label) for word in split_words(tokens, strategy)]
    return [_entity(group, decode) for group in group_words(words)]


def split_words(tokens: Iterable[Token], strategy: str) -> list[list[Token]]:
    """Put the tokens of a word together; with "simple" each token stands alone."""
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.continues_word and strategy != "simple":
            words[-1].append(token)
        else:
            words.append([token])
    return words


def label_word(tokens: Sequence[Token], strategy: str, id2label: Mapping[int, str]) -> Word:
    """Give a word one label: of its first token, of its most certain one ("max"), or of the mean scores."""
    if strategy == "average":
        scores = np.mean([token.scores for token in tokens], axis=0)
    elif strategy == "max":
        scores = max((token.scores for token in tokens), key=lambda row: float(row.max()))
    else:
        scores = tokens[0].scores
    label_idx = int(scores.argmax())
    return Word(tokens, id2label[label_idx], float(scores[label_idx]))


def group_words(words: Iterable[Word]) -> list[list[Word]]:
    """Put neighbours with the same tag together; a B- label starts a new group."""
    groups: list[list[Word]] = []
    for word in words:
        if groups and word.tag == groups[-1][-1].tag and not word.begins:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _entity(words: Sequence[Word], decode: Decode) -> dict[str, Any]:
    tokens = [token for word in words for token in word.tokens]
    return {
        # The name keeps what follows its first dash, whatever stands before: that is how transformers does
        # it.
        "entity_group": words[0].label.split("-", 1)[-1],
        "score": float(np.mean([word.score for word in words])),
        "word": decode([token.token_id for token in tokens]),
        "start": tokens[0].start,
        "end": tokens[-1].end,
    }


def merge_overlapping(entities: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Of entities that overlap, because two windows saw them, keep the longest, then the most certain."""
    kept: list[Mapping[str, Any]] = []
    for entity in sorted(entities, key=lambda item: item["start"]):
        if kept and entity["start"] < kept[-1]["end"]:
            if _weight(entity) > _weight(kept[-1]):
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept


def _weight(entity: Mapping[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
