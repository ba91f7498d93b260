"""Texts, or pairs of texts, to labels with scores.

The model has a sequence classification head; which function turns its logits into scores follows the config,
as in transformers, unless the caller says otherwise.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from smollm3.engine.params import check_flag, check_number
from smollm3.errors import ParameterError
from smollm3.model.config import SmolLM3Config
from smollm3.pipelines.pipeline import Pipeline, check_choice, choose_fields
from smollm3.pipelines.windows import check_rows, logits_of

FUNCTIONS = ("default", "softmax", "sigmoid", "none")


@dataclass(frozen=True)
class TextClassificationOptions:
    """What a call may ask for.

    top_k: labels to return, best first; None for all. A call that does not give it gets the best label alone.
    function_to_apply: softmax, sigmoid, none, or default: none for regression, sigmoid for one label or
        several at once, softmax otherwise.
    return_all_scores: transformers' older spelling; True is all labels in the config's order.
    truncation: cut a text that does not fit instead of raising; max_length: to so many tokens.
    """

    top_k: int | None = 1
    function_to_apply: str | None = None
    return_all_scores: bool | None = None
    truncation: bool = False
    max_length: int | None = None
    legacy: bool = True  # whether top_k was left out: then one best label is not wrapped in a list


class TextClassificationPipeline(Pipeline[TextClassificationOptions]):
    """`pipe("a text")`, `pipe({"text": ..., "text_pair": ...})`, or lists of those."""

    task = "text-classification"
    accepts = "a text or {'text': ..., 'text_pair': ...}"

    def defaults(self) -> TextClassificationOptions:
        return TextClassificationOptions()

    def choose(
        self, options: TextClassificationOptions, given: Mapping[str, Any]
    ) -> TextClassificationOptions:
        if "legacy" in given:
            raise ParameterError("'legacy' is no argument of text-classification: give top_k to get a list")
        chosen = choose_fields(self.task, options, given)
        _check(chosen, given)
        if "top_k" in given:
            return replace(chosen, legacy=False, return_all_scores=None)
        return replace(chosen, legacy=True, top_k=1) if "return_all_scores" in given else chosen

    def is_single(self, inputs: object, options: TextClassificationOptions) -> bool:
        return isinstance(inputs, str | Mapping)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """Classify; each result is `{"label": str, "score": float}`, or a list of them when `top_k` is given.

        As in transformers, the result of a single string comes in a list unless this call gives `top_k`.
        """
        results = super().__call__(inputs, batch_size=batch_size, **options)
        return [results] if isinstance(inputs, str) and "top_k" not in options else results

    def run(self, inputs: list[Any], options: TextClassificationOptions) -> Iterable[Any]:
        rows = [self._encode(item, options) for item in inputs]
        check_rows(self.model, rows, "shorten it or pass truncation=True")
        for (logits,) in logits_of(self.model, rows, len(rows), per_token=False):
            yield ranked(logits, self.model.config, options)

    def _encode(self, item: str | Mapping[str, str], options: TextClassificationOptions) -> list[int]:
        if isinstance(item, str):
            text, pair = item, None
        else:
            if "text" not in item or set(item) - {"text", "text_pair"}:
                raise ParameterError(
                    f"a pair has the keys 'text' and 'text_pair', not {sorted(map(str, item))}"
                )
            text, pair = item["text"], item.get("text_pair")
        encoded = self.tokenizer(text, pair, truncation=options.truncation, max_length=self._limit(options))
        return list(encoded["input_ids"])

    def _limit(self, options: TextClassificationOptions) -> int | None:
        if not options.truncation:
            return None
        limits = [self.tokenizer.model_max_length, self.model.config.max_position_embeddings]
        return min([*limits, options.max_length] if options.max_length else limits)


def _check(options: TextClassificationOptions, given: Mapping[str, Any]) -> None:
    if options.top_k is not None:
        check_number("top_k", options.top_k, 1, integer=True)
    if options.function_to_apply is not None:
        check_choice("function_to_apply", options.function_to_apply, FUNCTIONS)
    check_flag("truncation", options.truncation)
    if options.max_length is not None:
        check_number("max_length", options.max_length, 1, integer=True)
        if not options.truncation:
            raise ParameterError(
                f"max_length={options.max_length} cuts nothing alone: pass truncation=True with it"
            )
    if options.return_all_scores is not None:
        check_flag("return_all_scores", options.return_all_scores)
        if "top_k" in given and "return_all_scores" in given:
            raise ParameterError("top_k and return_all_scores are two spellings of one thing: give one")


def ranked(logits: Tensor, config: SmolLM3Config, options: TextClassificationOptions) -> Any:
    """Turn the logits [C] of one text into its labels: one dict, or a list of them."""
    scores = apply_function(logits, options.function_to_apply or "default", config)
    assert config.id2label is not None
    labels = [{"label": config.id2label[idx], "score": score} for idx, score in enumerate(scores.tolist())]
    if options.return_all_scores:
        return labels
    if options.legacy:
        return max(labels, key=lambda label: label["score"])
    return sorted(labels, key=lambda label: label["score"], reverse=True)[: options.top_k]


def apply_function(logits: Tensor, function: str, config: SmolLM3Config) -> Tensor:
    """Turn logits [C] into scores [C]."""
    if function == "default":
        function = "softmax"
        if config.problem_type == "regression":
            function = "none"
        elif config.problem_type == "multi_label_classification" or config.num_labels == 1:
            function = "sigmoid"
    if function == "none":
        return logits
    return torch.sigmoid(logits) if function == "sigmoid" else torch.softmax(logits, dim=-1)
