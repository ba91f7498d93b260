"""Token classification: entities from given scores, places in the text, and what gets one clear line."""

from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_model

from smollm3.errors import ContextOverflowError, ParameterError, PromptError
from smollm3.model.heads import SmolLM3ForTokenClassification
from smollm3.pipelines.entities import Token, find_entities, merge_overlapping
from smollm3.pipelines.token_classification import TokenClassificationPipeline
from smollm3.tokenization import SmolLM3Tokenizer

LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"}


@pytest.fixture
def pipe(tokenizer: SmolLM3Tokenizer) -> TokenClassificationPipeline:
    return TokenClassificationPipeline(tiny_model(SmolLM3ForTokenClassification, id2label=LABELS), tokenizer)


def tokens(*rows: tuple[str, list[float]]) -> tuple[str, list[Token]]:
    """A text and its tokens, one per given piece; a piece that begins with a blank begins a word."""
    text, made = "", []
    for idx, (piece, scores) in enumerate(rows):
        start = len(text) + len(piece) - len(piece.lstrip())
        continues = bool(text) and not piece.startswith(" ")
        text += piece
        made.append(Token(idx, idx, np.array(scores, dtype=np.float32), start, len(text), continues))
    return text, made


TEXT, TOKENS = tokens(
    ("Ada", [0.1, 0.7, 0.1, 0.1]),
    ("li", [0.6, 0.1, 0.2, 0.1]),
    (" Love", [0.0, 0.1, 0.8, 0.1]),
    ("lace", [0.05, 0.0, 0.9, 0.05]),
    (" in", [1.0, 0.0, 0.0, 0.0]),
    (" Rome", [0.2, 0.0, 0.0, 0.8]),
    (" Oslo", [0.1, 0.0, 0.0, 0.9]),
    (" Eve", [0.0, 1.0, 0.0, 0.0]),
    (" Bob", [0.0, 1.0, 0.0, 0.0]),
)
PIECES = ["Ada", "li", " Love", "lace", " in", " Rome", " Oslo", " Eve", " Bob"]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("simple", [("PER", "Ada", 0.7), ("O", "li", 0.6), ("PER", "Lovelace", 0.85)]),
        ("first", [("PER", "Adali Lovelace", 0.75)]),
        ("average", [("PER", "Adali Lovelace", (0.4 + 0.85) / 2)]),
        ("max", [("PER", "Adali Lovelace", 0.8)]),
    ],
)
def test_words_and_tags_make_entities(strategy: str, expected: list[tuple[str, str, float]]) -> None:
    tail = [("O", "in", 1.0), ("LOC", "Rome Oslo", 0.85), ("PER", "Eve", 1.0), ("PER", "Bob", 1.0)]
    found = find_entities(TOKENS, strategy, LABELS, lambda ids: "".join(PIECES[i] for i in ids))
    assert [(e["entity_group"], TEXT[e["start"] : e["end"]]) for e in found] == [
        (group, words) for group, words, _ in [*expected, *tail]
    ]
    assert [e["score"] for e in found] == pytest.approx([score for *_, score in [*expected, *tail]], abs=1e-6)
    assert [e["word"].strip() for e in found] == [words for _, words, _ in [*expected, *tail]]


def test_what_two_windows_saw_is_told_once() -> None:
    def entity(start: int, end: int, score: float) -> dict[str, Any]:
        return {"start": start, "end": end, "score": score}

    long, short, better = entity(0, 9, 0.5), entity(5, 9, 0.9), entity(0, 9, 0.6)
    assert merge_overlapping([short, long]) == [long]
    assert merge_overlapping([long, better, entity(9, 12, 0.1)]) == [better, entity(9, 12, 0.1)]
    assert merge_overlapping([]) == []


def test_places_are_the_texts_own_characters(pipe: TokenClassificationPipeline) -> None:
    text = "Zoë 🙂 Müller\tat\nthe café"
    for item in pipe(text, ignore_labels=[]):
        assert 0 <= item["start"] <= item["end"] <= len(text)
    words = pipe(text, aggregation_strategy="first", ignore_labels=[])
    covered = "".join(text[item["start"] : item["end"]] for item in words)
    assert "".join(covered.split()) == "".join(text.split()), "entities cover the text"
    # A tab and a line break end a word as a blank does, and letters beyond ASCII come back whole.
    assert all("�" not in item["word"] for item in words)
    cut = [i["start"] for i in words if text[i["start"] - 1 : i["start"] + 1].isalnum() and i["start"]]
    assert not cut, "no word is told in two pieces"


def test_batches_give_what_each_text_gives_alone(pipe: TokenClassificationPipeline) -> None:
    texts = ["Ada met Bob", "x", "Where did she live? She lived in Amsterdam near the old harbour."]
    alone = [pipe(text) for text in texts]
    for one, other in zip(alone, pipe(texts, batch_size=3), strict=True):
        assert [{**item, "score": 0} for item in one] == [{**item, "score": 0} for item in other]
        assert [item["score"] for item in one] == pytest.approx([item["score"] for item in other], abs=1e-5)


def test_a_long_text_is_an_error_unless_read_in_windows(pipe: TokenClassificationPipeline) -> None:
    long = "word " * 600
    with pytest.raises(ContextOverflowError, match=r"over the context of 512.*stride"):
        pipe(long)
    found = pipe(long, stride=64, aggregation_strategy="simple", ignore_labels=[])
    assert found[-1]["end"] > 2900


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ({"text": "a"}, {}, PromptError, "takes a text"),
        ("", {}, PromptError, "empty"),
        ("a", {"is_split_into_words": True}, PromptError, "takes a text"),
        ("a", {"aggregation_strategy": "best"}, ParameterError, "'average'"),
        ("a", {"ignore_labels": "O"}, ParameterError, "a list of labels"),
        ("a", {"stride": 3}, ParameterError, "give another strategy"),
        ("a", {"stride": 512, "aggregation_strategy": "max"}, ParameterError, "less than the window of 512"),
        ("a", {"stride": -1, "aggregation_strategy": "max"}, ParameterError, "stride=-1"),
        ("a", {"agregation_strategy": "max"}, ParameterError, "did you mean 'aggregation_strategy'"),
    ],
    ids=str,
)
def test_wrong_input_gets_one_clear_line(
    pipe: TokenClassificationPipeline,
    inputs: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        pipe(inputs, **options)
    assert "\n" not in str(caught.value)
