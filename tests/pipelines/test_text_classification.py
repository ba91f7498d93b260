"""Text classification: what transformers' pipeline cannot be asked, and what gets one clear line."""

from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from smollm3.errors import ContextOverflowError, ParameterError, PromptError
from smollm3.model.heads import SmolLM3ForSequenceClassification
from smollm3.pipelines.text_classification import TextClassificationPipeline
from smollm3.tokenization import SmolLM3Tokenizer

LABELS = {0: "sad", 1: "neutral", 2: "glad"}


@pytest.fixture
def pipe(tokenizer: SmolLM3Tokenizer) -> TextClassificationPipeline:
    return TextClassificationPipeline(
        tiny_model(SmolLM3ForSequenceClassification, id2label=LABELS), tokenizer
    )


def test_scores_are_the_softmax_of_the_heads_logits(pipe: TextClassificationPipeline) -> None:
    ids = torch.tensor([pipe.tokenizer.encode("a good day")])
    with torch.no_grad():
        expected = pipe.model(input_ids=ids).logits[0].softmax(-1)
    best = int(expected.argmax())
    assert pipe("a good day") == [{"label": LABELS[best], "score": pytest.approx(float(expected[best]))}]


def test_return_all_scores_keeps_the_configs_order(pipe: TextClassificationPipeline) -> None:
    (labels,) = pipe("a good day", return_all_scores=True)
    assert [label["label"] for label in labels] == ["sad", "neutral", "glad"]
    assert sum(label["score"] for label in labels) == pytest.approx(1)
    assert pipe("a good day", return_all_scores=False) == pipe("a good day")
    assert sorted(labels, key=lambda label: -label["score"]) == pipe("a good day", top_k=None)


def test_a_call_overrides_what_the_pipeline_was_built_with(tokenizer: SmolLM3Tokenizer) -> None:
    model = tiny_model(SmolLM3ForSequenceClassification, id2label=LABELS)
    built = TextClassificationPipeline(model, tokenizer, return_all_scores=True, batch_size=2)
    assert len(built("x")[0]) == 3
    assert len(built("x", top_k=2)) == 2
    assert len(built("x")[0]) == 3, "a call leaves nothing behind"


def test_a_long_text_is_an_error_unless_it_may_be_cut(pipe: TextClassificationPipeline) -> None:
    long = "word " * 600
    with pytest.raises(ContextOverflowError, match=r"text of \d+ tokens is over the context of 512"):
        pipe(long)
    kept = pipe.tokenizer.decode(pipe.tokenizer.encode(long)[:512])
    assert pipe(long, truncation=True)[0]["score"] == pytest.approx(pipe(kept, truncation=True)[0]["score"])
    short = pipe(long, truncation=True, max_length=3)
    assert short == pipe(pipe.tokenizer.decode(pipe.tokenizer.encode(long)[:3]))


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (3, {}, PromptError, "takes a text or"),
        (None, {}, PromptError, "takes a text or"),
        (["a", 3], {}, PromptError, "not int 3"),
        ("", {}, PromptError, "empty"),
        ({"text": "a", "pair": "b"}, {}, ParameterError, "'text' and 'text_pair'"),
        ("a", {"top_k": 0}, ParameterError, "top_k=0"),
        ("a", {"top_k": 1.5}, ParameterError, "top_k=1.5"),
        ("a", {"top_kk": 1}, ParameterError, "did you mean 'top_k'"),
        ("a", {"function_to_apply": "tanh"}, ParameterError, "'softmax'"),
        ("a", {"max_length": 5}, ParameterError, "truncation=True"),
        ("a", {"top_k": 1, "return_all_scores": True}, ParameterError, "two spellings"),
        ("a", {"batch_size": 0}, ParameterError, "batch_size"),
        ("a", {"legacy": True}, ParameterError, "'legacy'"),
    ],
    ids=str,
)
def test_wrong_input_gets_one_clear_line(
    pipe: TextClassificationPipeline,
    inputs: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        pipe(inputs, **options)
    assert "\n" not in str(caught.value)
