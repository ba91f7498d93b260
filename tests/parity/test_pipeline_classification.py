"""Text and token classification give the labels, scores and structure of transformers' pipelines."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_models import tiny_model, write_tokenizer

from smollm3.model.heads import SmolLM3ForSequenceClassification, SmolLM3ForTokenClassification
from smollm3.model.module import SmolLM3PreTrainedModel
from smollm3.pipelines.text_classification import TextClassificationPipeline
from smollm3.pipelines.token_classification import TokenClassificationPipeline
from smollm3.tokenization import SmolLM3Tokenizer

TEXTS = [
    "Ada Lovelace wrote to Charles Babbage in London.",
    "She lived in Amsterdam, near the harbour.",
    "Microsoft met the New York Times on Monday",
    "x",
]
NER_LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "MISC", 6: "a-b-c"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("classification"), model_max_length=24)


def theirs(task: str, ours: SmolLM3PreTrainedModel, folder: Path, **options: Any) -> Any:
    """transformers' pipeline over the same weights."""
    head = type(ours).__name__
    fields = {
        key: value for key, value in ours.config.to_dict().items() if key not in ("torch_dtype", "dtype")
    }
    model = getattr(transformers, head)(transformers.SmolLM3Config(**fields)).eval()
    model.load_state_dict(ours.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **options)


def assert_same(ours: Any, expected: Any) -> None:
    """Equal in structure and words; numbers within float32's noise."""
    if isinstance(expected, dict):
        assert list(ours) == list(expected)
        for key, value in expected.items():
            assert_same(ours[key], value)
    elif isinstance(expected, list):
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, int | str):
        assert ours == expected
    else:
        assert float(ours) == pytest.approx(float(expected), abs=2e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 3, "id2label": {0: "sad", 1: "neutral", 2: "glad"}},
        {"num_labels": 1},
        {"num_labels": 1, "problem_type": "regression"},
        {"num_labels": 4, "problem_type": "multi_label_classification"},
    ],
    ids=["three", "one", "regression", "multi"],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 2},
        {"top_k": None},
        {"function_to_apply": "none"},
        {"function_to_apply": "sigmoid", "top_k": 1},
    ],
    ids=str,
)
def test_text_classification(folder: Path, config: dict[str, Any], options: dict[str, Any]) -> None:
    model = tiny_model(SmolLM3ForSequenceClassification, **config)
    tokenizer = SmolLM3Tokenizer.from_path(folder)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    oracle = theirs("text-classification", model, folder)
    for inputs in (TEXTS[0], TEXTS, pair, [pair, pair]):
        pipe = TextClassificationPipeline(model, tokenizer)
        assert_same(pipe(inputs, **options), oracle(inputs, **options))
    built = TextClassificationPipeline(model, tokenizer, **options)
    assert_same(built(TEXTS[0]), theirs("text-classification", model, folder, **options)(TEXTS[0]))


def test_text_classification_in_batches_is_what_each_text_gives_alone(folder: Path) -> None:
    model = tiny_model(SmolLM3ForSequenceClassification, num_labels=3)
    pipe = TextClassificationPipeline(model, SmolLM3Tokenizer.from_path(folder), batch_size=3)
    assert_same(pipe(TEXTS, top_k=None), theirs("text-classification", model, folder)(TEXTS, top_k=None))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_token_classification(folder: Path, strategy: str, batch_size: int) -> None:
    for seed in range(4):
        model = tiny_model(
            SmolLM3ForTokenClassification, seed=seed, num_labels=len(NER_LABELS), id2label=NER_LABELS
        )
        pipe = TokenClassificationPipeline(model, SmolLM3Tokenizer.from_path(folder), batch_size=batch_size)
        oracle = theirs("token-classification", model, folder)
        for options in ({}, {"ignore_labels": []}, {"ignore_labels": ["PER", "B-PER"]}):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Tokenizer does not support real words")
                expected = oracle(TEXTS, aggregation_strategy=strategy, **options)
            assert_same(pipe(TEXTS, aggregation_strategy=strategy, **options), expected)


@pytest.mark.parametrize("stride", [0, 5, 20])
def test_long_texts_are_read_in_windows(folder: Path, stride: int) -> None:
    text = " ".join(TEXTS * 3)
    model = tiny_model(SmolLM3ForTokenClassification, num_labels=len(NER_LABELS), id2label=NER_LABELS)
    pipe = TokenClassificationPipeline(
        model, SmolLM3Tokenizer.from_path(folder), aggregation_strategy="simple"
    )
    oracle = theirs("token-classification", model, folder, aggregation_strategy="simple", stride=stride)
    ours = pipe([text, "x"], stride=stride, batch_size=2)
    assert_same(ours, oracle([text, "x"]))
    assert ours[0][-1]["end"] > 400, "the last window was read"


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_words_that_are_split_already(folder: Path, strategy: str) -> None:
    words = ["Ada", "Lovelace", "in", "Amsterdam,", "today"]
    model = tiny_model(SmolLM3ForTokenClassification, num_labels=len(NER_LABELS), id2label=NER_LABELS)
    pipe = TokenClassificationPipeline(model, SmolLM3Tokenizer.from_path(folder))
    oracle = theirs("token-classification", model, folder)
    for delimiter in (" ", "--"):
        options = {"is_split_into_words": True, "delimiter": delimiter, "aggregation_strategy": strategy}
        assert_same(pipe(words, **options), oracle(words, **options))
        assert_same(pipe([words, words[:2]], **options), oracle([words, words[:2]], **options))
