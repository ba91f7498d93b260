"""Texts to labelled tokens, or to entities with their characters' places.

The model has a token classification head. A text longer than the context is an error, unless `stride` is
given: then windows that overlap by so many tokens are read, and what two windows saw is told once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding

from smollm3.engine.params import check_flag, check_number
from smollm3.errors import ParameterError
from smollm3.pipelines.entities import STRATEGIES, Token, find_entities, label_tokens, merge_overlapping
from smollm3.pipelines.pipeline import Pipeline, check_choice, choose_fields
from smollm3.pipelines.windows import check_rows, logits_of
from smollm3.text.tokenizer_lengths import Truncation


@dataclass(frozen=True)
class TokenClassificationOptions:
    """What a call may ask for.

    aggregation_strategy: none (a dict per token), simple (neighbours with one tag), or first, average, max
        (the same, but all tokens of a word get one label).
    ignore_labels: labels to leave out.
    stride: read long texts in windows that overlap by so many tokens; needs a strategy other than none.
    is_split_into_words: the inputs are lists of words; offsets then count in the words joined by `delimiter`.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] = ("O",)
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str = " "

    def __post_init__(self) -> None:
        check_choice("aggregation_strategy", self.aggregation_strategy, STRATEGIES)
        if isinstance(self.ignore_labels, str) or not isinstance(self.ignore_labels, Sequence):
            raise ParameterError(f"ignore_labels={self.ignore_labels!r}: give a list of labels")
        check_flag("is_split_into_words", self.is_split_into_words)
        if self.stride is not None:
            check_number("stride", self.stride, 0, integer=True)
            if self.aggregation_strategy == "none":
                raise ParameterError(
                    f"stride={self.stride} with aggregation_strategy='none' would tell tokens twice: "
                    "give another strategy"
                )


class TokenClassificationPipeline(Pipeline[TokenClassificationOptions]):
    """`pipe("a text")` or a list of texts; each result is a list of dicts."""

    task = "token-classification"
    accepts = "a text (with is_split_into_words=True, a list of words)"

    def defaults(self) -> TokenClassificationOptions:
        return TokenClassificationOptions()

    def choose(
        self, options: TokenClassificationOptions, given: Mapping[str, Any]
    ) -> TokenClassificationOptions:
        chosen = choose_fields(self.task, options, given)
        limit = self._window_size()
        if chosen.stride is not None and chosen.stride >= limit:
            raise ParameterError(f"stride={chosen.stride}: give less than the window of {limit} tokens")
        return chosen

    def is_single(self, inputs: object, options: TokenClassificationOptions) -> bool:
        if not options.is_split_into_words:
            return isinstance(inputs, str)
        return isinstance(inputs, list | tuple) and all(isinstance(word, str) for word in inputs)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """Label tokens: a list of `{"entity", "score", "index", "word", "start", "end"}` for each text, or
        with an aggregation strategy of `{"entity_group", "score", "word", "start", "end"}` for each entity.

        `start` and `end` count characters of the text; `word` is what the tokens decode to. As in
        transformers, the result of a single list of words comes in a list.
        """
        chosen = self.choose(self.options, options)
        results = super().__call__(inputs, batch_size=batch_size, **options)
        return [results] if chosen.is_split_into_words and self.is_single(inputs, chosen) else results

    def run(self, inputs: list[Any], options: TokenClassificationOptions) -> Iterable[Any]:
        groups = [self._windows(item, options) for item in inputs]
        rows = [window.ids for windows in groups for window in windows]
        check_rows(self.model, rows, "shorten it or pass stride=... to read it in windows")
        logits = logits_of(self.model, rows, len(inputs))
        for item, windows in zip(inputs, groups, strict=True):
            scores = [torch.softmax(row, dim=-1).numpy() for (row,) in islice(logits, len(windows))]
            tokens = [list(_tokens(item, *pair, options)) for pair in zip(windows, scores, strict=True)]
            yield self._results(tokens, options)

    def _window_size(self) -> int:
        return min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    def _windows(self, item: str | Sequence[str], options: TokenClassificationOptions) -> list[Encoding]:
        truncation = None
        if options.stride is not None:
            truncation = Truncation(self._window_size(), stride=options.stride)
        (encoding,) = self.tokenizer.encode_with_offsets(
            [item], truncation=truncation, is_split_into_words=options.is_split_into_words
        )
        return [encoding, *encoding.overflowing]

    def _results(self, windows: Sequence[Sequence[Token]], options: TokenClassificationOptions) -> list[Any]:
        """Return the dicts of one text, from the tokens of its windows."""
        id2label = self.model.config.id2label
        assert id2label is not None
        results: list[Any] = []
        for tokens in windows:
            if options.aggregation_strategy == "none":
                results += label_tokens(tokens, id2label, lambda idx: self.tokenizer.id_to_token(idx) or "")
            else:
                results += find_entities(
                    tokens, options.aggregation_strategy, id2label, self.tokenizer.decode
                )
        results = [
            item
            for item in results
            if item.get("entity_group", item.get("entity")) not in options.ignore_labels
        ]
        return merge_overlapping(results) if len(windows) > 1 else results


def _tokens(
    item: str | Sequence[str],
    window: Encoding,
    scores: NDArray[np.float32],
    options: TokenClassificationOptions,
) -> Iterator[Token]:
    """Yield the window's tokens, special ones left out, with their places in the text."""
    text, starts = item, [0]
    if not isinstance(item, str):
        text = options.delimiter.join(item)
        lengths = (len(word) + len(options.delimiter) for word in item)
        starts = list(accumulate(lengths, initial=0))
    seen = 0  # characters that tokens before stood for
    for idx, (token_id, (start, end)) in enumerate(zip(window.ids, window.offsets, strict=True)):
        if window.special_tokens_mask[idx]:
            continue
        shift = starts[window.word_ids[idx] or 0] if not isinstance(item, str) else 0
        start, end = start + shift, end + shift
        # A byte-level vocabulary marks no word's end: a word is what stands between white space. Tokens that
        # share a character belong together, whatever stands before it.
        continues = start < seen or (start > 0 and not any(map(str.isspace, text[start - 1 : start + 1])))
        seen = max(seen, end)
        yield Token(idx, token_id, scores[idx], start, end, continues)
