"""A question and a context to the part of the context that answers it.

The model has a question answering head: two logits per token. A context that does not fit one window is read
in several that overlap by `doc_stride` tokens. The probabilities are taken over all windows together, so that
a window without the answer does not outbid the one that has it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from tokenizers import Encoding
from torch import Tensor

from smollm3.engine.params import check_flag, check_number
from smollm3.errors import ParameterError, PromptError
from smollm3.pipelines.pipeline import Pipeline, choose_fields, describe
from smollm3.pipelines.spans import Window, best_spans
from smollm3.pipelines.windows import check_rows, logits_of
from smollm3.text.tokenizer_lengths import Truncation


@dataclass(frozen=True)
class QuestionAnsweringOptions:
    """What a call may ask for.

    top_k: answers to return, best first; 1 returns a dict instead of a list.
    max_answer_len: tokens of an answer at most.
    max_seq_len: tokens of a window at most, question included; doc_stride: tokens that two windows share.
    max_question_len: a longer question is an error.
    handle_impossible_answer: let "no answer" compete; it is the span of a window's first token, as in
        training.
    align_to_words: widen an answer that begins or ends inside a word.
    """

    top_k: int = 1
    max_answer_len: int = 15
    max_seq_len: int | None = None
    doc_stride: int | None = None
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "max_question_len"):
            check_number(name, getattr(self, name), 1, integer=True)
        if self.max_seq_len is not None:
            check_number("max_seq_len", self.max_seq_len, 2, integer=True)
        if self.doc_stride is not None:
            check_number("doc_stride", self.doc_stride, 0, integer=True)
        check_flag("handle_impossible_answer", self.handle_impossible_answer)
        check_flag("align_to_words", self.align_to_words)


class QuestionAnsweringPipeline(Pipeline[QuestionAnsweringOptions]):
    """`pipe(question=..., context=...)`, or dicts of the two, or lists of either."""

    task = "question-answering"
    accepts = "question=... and context=..., or {'question': ..., 'context': ...}"

    def defaults(self) -> QuestionAnsweringOptions:
        return QuestionAnsweringOptions()

    def choose(self, options: QuestionAnsweringOptions, given: Mapping[str, Any]) -> QuestionAnsweringOptions:
        return choose_fields(self.task, options, given)

    def is_single(self, inputs: object, options: QuestionAnsweringOptions) -> bool:
        return isinstance(inputs, Mapping)

    def __call__(
        self,
        inputs: Any = None,
        *,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        """Answer: `{"score", "start", "end", "answer"}` with `context[start:end] == answer`, or lists of
        those.

        Lists of questions and of contexts go together by place; one context serves a list of questions.
        """
        if question is not None or context is not None:
            if inputs is not None:
                raise ParameterError("give either question and context, or dicts of the two: not both")
            inputs = _pairs(question, context)
        return super().__call__(inputs, batch_size=batch_size, **options)

    def run(self, inputs: list[Any], options: QuestionAnsweringOptions) -> Iterable[Any]:
        groups = [self._windows(item, options) for item in inputs]
        rows = [window.ids for windows in groups for window in windows]
        check_rows(self.model, rows, "lower max_seq_len")
        logits = logits_of(self.model, rows, len(inputs), fields=("start_logits", "end_logits"))
        for item, encodings in zip(inputs, groups, strict=True):
            windows = [
                Window(start, end, _in_context(encoding, item["context"]), encoding.offsets)
                for encoding, (start, end) in zip(encodings, islice(logits, len(encodings)), strict=True)
            ]
            yield _answers(item["context"], windows, options)

    def _windows(self, item: Mapping[str, str], options: QuestionAnsweringOptions) -> list[Encoding]:
        """Encode question and context together; the question stands first in every window."""
        question, context = _checked_pair(item)
        num_question = len(self.tokenizer.encode(question, add_special_tokens=False))
        if num_question > options.max_question_len:
            raise PromptError(
                f"question of {num_question} tokens is over max_question_len={options.max_question_len}: "
                "shorten it or raise max_question_len"
            )
        limit = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        size = min(limit, 384 if options.max_seq_len is None else options.max_seq_len)
        room = size - num_question - self.tokenizer.num_special_tokens_to_add(pair=True)
        if room < 1:
            raise ParameterError(
                f"a window of {size} tokens holds the question of {num_question} and nothing of the context: "
                "raise max_seq_len"
            )
        stride = min(size // 2, 128, room - 1) if options.doc_stride is None else options.doc_stride
        if stride >= room:
            raise ParameterError(
                f"doc_stride={stride} leaves no step forward: give less than the {room} tokens of "
                "context in a window"
            )
        truncation = Truncation(size, strategy="only_second", stride=stride)
        (encoding,) = self.tokenizer.encode_with_offsets([question], [context], truncation=truncation)
        return [encoding, *encoding.overflowing]


def _pairs(question: Any, context: Any) -> Any:
    """Put `question=` and `context=` together: one dict, or a list of dicts."""
    if question is None or context is None:
        raise PromptError(
            f"question-answering needs both: {'question' if question is None else 'context'} is missing"
        )
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    if isinstance(question, str):
        raise PromptError(f"one question goes with one context: not {describe(context)}")
    contexts = [context] * len(question) if isinstance(context, str) else context
    if len(contexts) != len(question):
        raise PromptError(f"{len(question)} questions and {len(contexts)} contexts: give as many of each")
    return [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]


def _checked_pair(item: Mapping[str, str]) -> tuple[str, str]:
    if set(item) != {"question", "context"}:
        raise PromptError(
            f"question-answering takes the keys 'question' and 'context', not {sorted(map(str, item))}"
        )
    for name, text in item.items():
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"the {name} is empty or no text: {describe(text)}")
    return item["question"], item["context"]


def _in_context(window: Encoding, context: str) -> Tensor:
    """Which tokens [T] stand for characters of the context, blanks aside."""
    places = zip(window.sequence_ids, window.offsets, strict=True)
    return torch.tensor(
        [sequence == 1 and bool(context[start:end].strip()) for sequence, (start, end) in places]
    )


def _answers(context: str, windows: Sequence[Window], options: QuestionAnsweringOptions) -> Any:
    """Return the best answer, or the `top_k` best."""
    spans = best_spans(
        windows,
        options.max_answer_len,
        options.top_k,
        context,
        with_null=options.handle_impossible_answer,
        align=options.align_to_words,
    )
    answers = [
        {"score": span.score, "start": span.start, "end": span.end, "answer": context[span.start : span.end]}
        for span in spans
    ]
    return answers[0] if options.top_k == 1 else answers
