"""Text generation gives the structure and the greedy text of transformers' pipeline, on trained weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from smollm3.pipelines.factory import pipeline
from smollm3.pipelines.text_generation import TextGenerationPipeline

CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
OTHER = [{"role": "user", "content": "Name a colour."}]
PREFILLED = [*CHAT, {"role": "assistant", "content": "The capital of France"}]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def ours(small_model: Path) -> TextGenerationPipeline:
    pipe = pipeline("text-generation", model=small_model, dtype=torch.float32, device="cpu")
    assert isinstance(pipe, TextGenerationPipeline)
    return pipe


@pytest.fixture(scope="module")
def theirs(ours: TextGenerationPipeline, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' pipeline over its Llama class with the same weights."""
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.tokenizer.save_pretrained(folder)
    fields = ours.model.config.to_dict()
    kept = {key: value for key, value in fields.items() if key in transformers.LlamaConfig().to_dict()}
    config = transformers.LlamaConfig(**{**kept, "model_type": "llama", "dtype": None})
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(ours.model.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.pipeline("text-generation", model=model.eval(), tokenizer=tokenizer, device="cpu")


def both(ours: Any, theirs: Any, inputs: Any, **options: Any) -> tuple[Any, Any]:
    return ours(inputs, **GREEDY, **options), theirs(inputs, **GREEDY, **options)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ("The capital of France is", {}),
        ("The capital of France is", {"return_full_text": False}),
        ("The capital of France is", {"return_tensors": True}),
        ("capital of France is", {"prefix": "The "}),
        (CHAT, {}),
        (CHAT, {"return_full_text": False}),
        (PREFILLED, {}),
        (PREFILLED, {"continue_final_message": False}),
        (["Once upon a time", "1, 2, 3, 4,"], {}),
        ([CHAT, OTHER, PREFILLED], {}),
        (CHAT, {"stop_sequence": "Paris"}),
        (CHAT, {"stop_sequence": ["ris.", " of"]}),
        ("Hello <|im_end|> there", {"skip_special_tokens": False, "return_full_text": False}),
    ],
    ids=lambda value: str(value)[:24],
)
def test_same_structure_and_greedy_text(ours: Any, theirs: Any, inputs: Any, options: dict[str, Any]) -> None:
    mine, expected = both(ours, theirs, inputs, **options)
    assert mine == expected


def test_the_page_finds_paris_where_it_looks(ours: Any) -> None:
    outputs = ours(CHAT, max_new_tokens=12, do_sample=False)
    assert "Paris" in outputs[0]["generated_text"][-1]["content"]
    assert outputs[0]["generated_text"][:-1] == CHAT


def test_batches_generate_what_each_input_generates_alone(ours: Any, theirs: Any) -> None:
    inputs = ["The", "My favourite food is a dish that my grandmother", "def add(a, b):\n    return"]
    alone, expected = both(ours, theirs, inputs)
    assert ours(inputs, batch_size=3, **GREEDY) == alone == expected
    chats = [CHAT, OTHER]
    assert ours(chats, batch_size=2, **GREEDY) == theirs(chats, **GREEDY)


def test_an_iterator_streams_results_lazily(ours: Any, theirs: Any) -> None:
    taken = []

    def inputs() -> Iterator[str]:
        for text in ("One two", "Red green"):
            taken.append(text)
            yield text

    results = ours(inputs(), **GREEDY)
    assert taken == []
    assert next(results) == theirs("One two", **GREEDY)
    assert taken == ["One two"]
    assert list(results) == [theirs("Red green", **GREEDY)]


def test_several_answers_come_in_one_list(ours: Any, theirs: Any) -> None:
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 2}
    for inputs in ("A", ["A", "B"], CHAT, [CHAT, OTHER]):
        mine, expected = ours(inputs, **options), theirs(inputs, **options)
        assert shape(mine) == shape(expected)


def shape(value: Any) -> Any:
    """The structure of a result, without its texts."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value)
