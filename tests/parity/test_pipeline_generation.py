"""Text generation gives the structure and the greedy text of transformers' pipeline.

Every way to call it on a tiny random model, and the page's ways on trained weights.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_model, write_tokenizer

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.pipelines.factory import pipeline
from smollm3.pipelines.text_generation import TextGenerationPipeline
from smollm3.tokenization import SmolLM3Tokenizer

CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
OTHER = [{"role": "user", "content": "Where did she live?"}]
PREFILLED = [*CHAT, {"role": "assistant", "content": "The capital of France"}]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
Pair = tuple[TextGenerationPipeline, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Our pipeline and transformers' over one tiny random SmolLM3."""
    folder = write_tokenizer(tmp_path_factory.mktemp("generation"))
    model = tiny_model(SmolLM3ForCausalLM)
    fields = {key: value for key, value in model.config.to_dict().items() if "dtype" not in key}
    theirs = transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(**fields)).eval()
    theirs.load_state_dict(model.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    oracle = transformers.pipeline("text-generation", model=theirs, tokenizer=tokenizer, device="cpu")
    return TextGenerationPipeline(model, SmolLM3Tokenizer.from_path(folder)), oracle


@pytest.fixture(scope="module")
def trained(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Our pipeline over the small trained model, and transformers' over its Llama class."""
    ours = pipeline("text-generation", model=small_model, dtype=torch.float32, device="cpu")
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.tokenizer.save_pretrained(folder)
    known = transformers.LlamaConfig().to_dict()
    fields = {key: value for key, value in ours.model.config.to_dict().items() if key in known}
    config = transformers.LlamaConfig(**{**fields, "model_type": "llama", "dtype": None})
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    theirs.load_state_dict(ours.model.state_dict(), assign=True)
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    theirs.tie_weights()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return ours, transformers.pipeline(
        "text-generation", model=theirs.eval(), tokenizer=tokenizer, device="cpu"
    )


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ("The capital of France is", {}),
        ("The capital of France is", {"return_full_text": False}),
        ("The capital of France is", {"return_tensors": True}),
        ("capital of France is", {"prefix": "The "}),
        (CHAT, {}),
        (CHAT, {"return_full_text": False}),
        (CHAT, {"return_tensors": True}),
        (PREFILLED, {}),
        (PREFILLED, {"continue_final_message": False}),
        (["Once upon a time", "1, 2, 3, 4,"], {}),
        (["alone"], {}),
        ([CHAT, OTHER, PREFILLED], {}),
        ([CHAT], {}),
        (CHAT, {"repetition_penalty": 1.3}),
        (CHAT, {"max_new_tokens": 1}),
        (OTHER, {"max_new_tokens": 60}),
        ("Hello <|im_end|> there", {"skip_special_tokens": False, "return_full_text": False}),
    ],
    ids=lambda value: str(value)[:24],
)
def test_same_structure_and_greedy_text(tiny: Pair, inputs: Any, options: dict[str, Any]) -> None:
    ours, theirs = tiny
    arguments = {**GREEDY, **options}
    assert ours(inputs, **arguments) == theirs(inputs, **arguments)


@pytest.mark.parametrize("place", [2, 9, 17])
def test_stop_strings_end_the_answer_where_they_do_there(tiny: Pair, place: int) -> None:
    ours, theirs = tiny
    whole = ours(CHAT, do_sample=False, max_new_tokens=30, return_full_text=False)[0]["generated_text"]
    stop = whole[place : place + 3]
    for stops in (stop, ["not there", stop]):
        arguments = {"do_sample": False, "max_new_tokens": 30, "stop_sequence": stops}
        assert ours(CHAT, **arguments) == theirs(CHAT, **arguments)


def test_batches_generate_what_each_input_generates_alone(tiny: Pair) -> None:
    ours, theirs = tiny
    inputs = ["The", "My favourite food is a dish that my grandmother", "def add(a, b):\n    return"]
    alone = theirs(inputs, **GREEDY)
    assert ours(inputs, batch_size=3, **GREEDY) == ours(inputs, batch_size=2, **GREEDY) == alone
    chats = [CHAT, OTHER]
    assert ours(chats, batch_size=2, **GREEDY) == theirs(chats, **GREEDY)


def test_an_iterator_streams_results_lazily(tiny: Pair) -> None:
    ours, theirs = tiny
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


def test_several_answers_come_in_one_list(tiny: Pair) -> None:
    ours, theirs = tiny
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 2}
    for inputs in ("A", ["A", "B"], CHAT, [CHAT, OTHER]):
        assert shape(ours(inputs, **options)) == shape(theirs(inputs, **options))


def shape(value: Any) -> Any:
    """The structure of a result, without its texts."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value)


def test_trained_weights_answer_as_they_do_there(trained: Pair) -> None:
    ours, theirs = trained
    for inputs in (CHAT, "Once upon a time,", [PREFILLED]):
        arguments = {"do_sample": False, "max_new_tokens": 8}
        assert ours(inputs, **arguments) == theirs(inputs, **arguments)


def test_the_page_finds_the_answer_where_it_looks(trained: Pair) -> None:
    ours, _ = trained
    outputs = ours([CHAT, OTHER], max_new_tokens=8, do_sample=False, batch_size=2)
    assert "Paris" in outputs[0][0]["generated_text"][-1]["content"]
    assert outputs[0][0]["generated_text"][:-1] == CHAT
