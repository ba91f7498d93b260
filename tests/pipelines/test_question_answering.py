"""Question answering over tiny random heads: spans, offsets, windows, arguments."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from smollm3.errors import ParameterError, PromptError
from smollm3.model.heads import SmolLM3ForQuestionAnswering
from smollm3.pipelines.question_answering import QuestionAnsweringPipeline
from smollm3.tokenization import SmolLM3Tokenizer

QUESTION = "Where did she live?"
CONTEXT = "Ada wrote from London.\n\nShe lived in Amsterdam, near the café 🙂 on Monday."
LONG = " ".join(f"{place}. {CONTEXT}" for place in range(12))


@pytest.fixture
def pipe(tokenizer: SmolLM3Tokenizer) -> QuestionAnsweringPipeline:
    return QuestionAnsweringPipeline(tiny_model(SmolLM3ForQuestionAnswering), tokenizer)


def brute_force(pipe: Any, question: str, context: str, max_len: int, top_k: int) -> list[Any]:
    """The best spans of one window, from a plain forward pass and loops."""
    encoded = pipe.tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    with torch.no_grad():
        out = pipe.model(input_ids=encoded["input_ids"])
    offsets = encoded["offset_mapping"][0].tolist()
    places = [
        context[s:e] if side == 1 else ""
        for (s, e), side in zip(offsets, encoded.sequence_ids(0), strict=True)
    ]
    inside = [i for i, piece in enumerate(places) if piece.strip()]
    start = dict(zip(inside, out.start_logits[0, inside].double().softmax(0).tolist(), strict=True))
    end = dict(zip(inside, out.end_logits[0, inside].double().softmax(0).tolist(), strict=True))
    best: dict[tuple[int, int], float] = {}
    for i in inside:
        for j in inside:
            if i <= j < i + max_len:
                answer = context[offsets[i][0] : offsets[j][1]].strip()
                begin = context.index(answer, offsets[i][0])
                key = (begin, begin + len(answer))
                best[key] = max(best.get(key, 0.0), start[i] * end[j])
    ordered = sorted(best.items(), key=lambda item: -item[1])[:top_k]
    return [{"score": score, "start": s, "end": e, "answer": context[s:e]} for (s, e), score in ordered]


@pytest.mark.parametrize("max_len", [1, 4, 15])
@pytest.mark.parametrize("seed", range(3))
def test_one_window_gives_the_best_spans(tokenizer: SmolLM3Tokenizer, max_len: int, seed: int) -> None:
    pipe = QuestionAnsweringPipeline(tiny_model(SmolLM3ForQuestionAnswering, seed=seed), tokenizer)
    expected = brute_force(pipe, QUESTION, CONTEXT, max_len, 5)
    options: dict[str, Any] = {"max_answer_len": max_len, "align_to_words": False}
    found = pipe(question=QUESTION, context=CONTEXT, top_k=5, **options)
    assert [list(answer) for answer in found] == [["score", "start", "end", "answer"]] * 5
    assert [(a["start"], a["end"], a["answer"]) for a in found] == [
        (a["start"], a["end"], a["answer"]) for a in expected
    ]
    assert [a["score"] for a in found] == pytest.approx([a["score"] for a in expected], rel=1e-4)
    assert pipe(question=QUESTION, context=CONTEXT, **options) == found[0]


class Finder(SmolLM3ForQuestionAnswering):
    """Answers with certainty wherever it sees the ids it looks for: an oracle in place of a trained head."""

    wanted: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:  # type: ignore[override]
        start, end = torch.zeros(input_ids.shape), torch.zeros(input_ids.shape)
        for row, ids in enumerate(input_ids.tolist()):
            for i in range(len(ids)):
                if ids[i : i + len(self.wanted)] == self.wanted:
                    start[row, i] = end[row, i + len(self.wanted) - 1] = 30.0
        return {"start_logits": start, "end_logits": end}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_long_contexts_are_searched_to_the_end(tokenizer: SmolLM3Tokenizer, batch_size: int) -> None:
    context = LONG + " The capital is Berlin, he said. " + LONG
    model = tiny_model(Finder)
    model.wanted = tokenizer.encode(" Berlin")
    pipe = QuestionAnsweringPipeline(model, tokenizer, batch_size=batch_size)
    answer = pipe(question=QUESTION, context=context, max_seq_len=64, doc_stride=16)
    assert answer == {
        "score": pytest.approx(1.0, abs=0.51),
        "start": context.index("Berlin"),
        "end": context.index("Berlin") + len("Berlin"),
        "answer": "Berlin",
    }
    items = [{"question": QUESTION, "context": context}, {"question": "What?", "context": "It is Berlin"}]
    found = pipe(items, max_seq_len=64)
    assert [item["answer"] for item in found] == ["Berlin", "Berlin"]


def test_windows_cover_the_context_and_overlap_by_the_stride(pipe: QuestionAnsweringPipeline) -> None:
    seen: list[list[int]] = []
    forward = pipe.model.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.extend(
            row[mask == 1].tolist()
            for row, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True)
        )
        return forward(*args, **kwargs)

    pipe.model.forward = spy  # type: ignore[method-assign]
    pipe(question=QUESTION, context=LONG, max_seq_len=50, doc_stride=7)
    question = pipe.tokenizer.encode(QUESTION)
    assert all(row[: len(question)] == question and len(row) <= 50 for row in seen)
    parts = [row[len(question) :] for row in seen]
    joined = parts[0] + [token_id for part in parts[1:] for token_id in part[7:]]
    assert joined == pipe.tokenizer.encode(LONG)
    assert all(one[-7:] == two[:7] for one, two in pairwise(parts))


def test_no_answer_is_an_answer_when_asked_for(pipe: QuestionAnsweringPipeline) -> None:
    model = pipe.model
    torch.nn.init.zeros_(model.qa_outputs.weight)  # type: ignore[union-attr]
    torch.nn.init.zeros_(model.qa_outputs.bias)  # type: ignore[union-attr]
    found = pipe(question=QUESTION, context="yes", handle_impossible_answer=True, top_k=3)
    assert {"score": pytest.approx(found[0]["score"]), "start": 0, "end": 0, "answer": ""} in found
    assert all(answer["answer"] for answer in pipe(question=QUESTION, context="yes", top_k=3))


def test_answers_are_whole_words(pipe: QuestionAnsweringPipeline) -> None:
    for answer in pipe(question=QUESTION, context=CONTEXT, top_k=20):
        start, end = answer["start"], answer["end"]
        assert CONTEXT[start:end] == answer["answer"]
        assert not (start and CONTEXT[start - 1].isalnum() and CONTEXT[start].isalnum())
        assert not (end < len(CONTEXT) and CONTEXT[end - 1].isalnum() and CONTEXT[end].isalnum())


def test_every_way_to_ask_gives_the_same(pipe: QuestionAnsweringPipeline) -> None:
    one = pipe(question=QUESTION, context=CONTEXT)
    item = {"question": QUESTION, "context": CONTEXT}
    assert pipe(item) == one
    assert pipe([item, item]) == pipe(question=[QUESTION] * 2, context=[CONTEXT] * 2) == [one, one]
    assert pipe(question=[QUESTION] * 2, context=CONTEXT) == [one, one]
    assert list(pipe(iter([item]))) == [one]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"question": "a"}, PromptError, "context is missing"),
        ({"context": "a"}, PromptError, "question is missing"),
        ({"question": " ", "context": "a"}, PromptError, "question is empty"),
        ({"question": "a", "context": "\n"}, PromptError, "context is empty"),
        ({"question": "a", "context": 3}, PromptError, "one question goes with one context"),
        ({"question": ["a", "b"], "context": ["c"]}, PromptError, "2 questions and 1 contexts"),
        ({"inputs": {"question": "a"}}, PromptError, "'question' and 'context'"),
        ({"inputs": "text"}, PromptError, "question=... and context=..."),
        ({"inputs": {"question": "a", "context": "b"}, "question": "a"}, ParameterError, "not both"),
        (
            {"question": "why " * 90, "context": "a"},
            PromptError,
            r"question of \d+ tokens is over max_question_len=64",
        ),
        ({"question": QUESTION, "context": "a", "max_seq_len": 4}, ParameterError, "raise max_seq_len"),
        (
            {"question": "a", "context": "b", "max_seq_len": 9, "doc_stride": 9},
            ParameterError,
            "doc_stride=9",
        ),
        ({"question": "a", "context": "b", "top_k": 0}, ParameterError, "top_k"),
        ({"question": "a", "context": "b", "max_answer_len": -1}, ParameterError, "max_answer_len"),
        ({"question": "a", "context": "b", "doc_strid": 1}, ParameterError, "did you mean 'doc_stride'"),
    ],
    ids=lambda value: str(value)[:32],
)
def test_wrong_questions_get_one_clear_line(
    pipe: QuestionAnsweringPipeline, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        pipe(**arguments)
    assert "\n" not in str(caught.value)
