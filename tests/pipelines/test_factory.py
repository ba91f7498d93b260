"""`pipeline(...)`: tasks, models by name, path or object, arguments of loading, clear errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_config, tiny_model, write_tokenizer

import smollm3
from smollm3 import BitsAndBytesConfig, SmolLM3Tokenizer, pipeline
from smollm3.errors import DeviceError, ModelNotFoundError, ParameterError
from smollm3.model.heads import (
    SmolLM3ForQuestionAnswering,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
)
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.pipelines.question_answering import QuestionAnsweringPipeline
from smollm3.pipelines.text_classification import TextClassificationPipeline
from smollm3.pipelines.text_generation import TextGenerationPipeline
from smollm3.pipelines.token_classification import TokenClassificationPipeline

TASKS = [
    ("text-generation", TextGenerationPipeline, SmolLM3ForCausalLM),
    ("text-classification", TextClassificationPipeline, SmolLM3ForSequenceClassification),
    ("sentiment-analysis", TextClassificationPipeline, SmolLM3ForSequenceClassification),
    ("token-classification", TokenClassificationPipeline, SmolLM3ForTokenClassification),
    ("ner", TokenClassificationPipeline, SmolLM3ForTokenClassification),
    ("question-answering", QuestionAnsweringPipeline, SmolLM3ForQuestionAnswering),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a tiny model of a class and its tokenizer into a folder."""

    def save(model_class: Any, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(model_class.__name__)
        tiny_model(model_class, **changes).save_pretrained(folder)
        return write_tokenizer(folder)

    return save


@pytest.fixture(scope="module")
def causal(saved: Callable[..., Path]) -> Path:
    return saved(SmolLM3ForCausalLM)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_name_stays_the_function() -> None:
    from smollm3.pipelines.factory import pipeline as made

    # A package of the same name would take the function's place once it is imported.
    assert smollm3.pipeline is pipeline is made
    assert callable(smollm3.pipeline)


@pytest.mark.parametrize(("task", "pipeline_class", "model_class"), TASKS)
def test_each_task_loads_and_runs(
    saved: Callable[..., Path], task: str, pipeline_class: type, model_class: type[Any]
) -> None:
    folder = saved(model_class)
    pipe = pipeline(task, model=str(folder), device="cpu")
    assert type(pipe) is pipeline_class
    assert type(pipe.model) is model_class
    assert not pipe.model.training
    if task == "question-answering":
        assert pipe(question="Where?", context="In Oslo")["answer"]
    else:
        assert pipe("In Oslo")
    assert type(pipeline(None, model=pipe.model, tokenizer=pipe.tokenizer)) is pipeline_class


def test_a_loaded_model_gives_what_its_folder_gives(causal: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5}
    by_path = pipeline("text-generation", causal, device="cpu", **options)
    by_object = pipeline(
        "text-generation", by_path.model, tokenizer=str(causal), device=-1, batch_size=2, **options
    )
    assert by_object.batch_size == 2
    assert by_object("She lived") == by_path("She lived")
    by_path.save_pretrained(tmp_path)
    assert pipeline("text-generation", tmp_path, by_path.tokenizer, device="cpu", **options)(
        "She"
    ) == by_path("She")
    assert "SmolLM3ForCausalLM, cpu, torch.float32" in repr(by_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": torch.bfloat16},
        {"torch_dtype": torch.bfloat16},
        {"dtype": "bfloat16"},
        {"torch_dtype": "bfloat16", "device_map": "cpu"},
        {"model_kwargs": {"dtype": torch.bfloat16}},
        {"model_kwargs": {"torch_dtype": torch.bfloat16, "device_map": {"": "cpu"}}},
    ],
    ids=str,
)
def test_dtype_has_two_spellings(causal: Path, arguments: dict[str, Any]) -> None:
    assert pipeline("text-generation", causal, **arguments).dtype == torch.bfloat16


def test_dtype_is_the_stored_one_by_default(causal: Path) -> None:
    assert pipeline("text-generation", causal, device="cpu").dtype == torch.float32


def test_arguments_of_loading_arrive(causal: Path) -> None:
    pipe = pipeline(
        "text-generation", causal, device_map="cpu", attn_implementation="eager", max_new_tokens=1
    )
    assert pipe.model.attn_implementation == "eager"
    config = tiny_config(max_position_embeddings=64)
    assert (
        pipeline("text-generation", causal, device="cpu", config=config).model.config.max_position_embeddings
        == 64
    )


@pytest.mark.parametrize("direct", [True, False])
def test_four_bits_through_either_door(saved: Callable[..., Path], direct: bool) -> None:
    folder = saved(SmolLM3ForCausalLM, hidden_size=64, intermediate_size=128)
    asked = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}
    arguments: dict[str, Any] = asked if direct else {"model_kwargs": asked}
    pipe = pipeline("text-generation", folder, device_map="cpu", **arguments)
    assert pipe.model.config.quantization_config["load_in_4bit"]
    whole = pipeline("text-generation", folder, device_map="cpu").model
    assert pipe.model.get_memory_footprint() < whole.get_memory_footprint()
    assert pipe("She lived", max_new_tokens=2)


def test_the_default_model_is_smollm3(monkeypatch: pytest.MonkeyPatch, tokenizer: SmolLM3Tokenizer) -> None:
    asked: list[Any] = []

    def load(name: Any, **arguments: Any) -> Any:
        asked.append((name, arguments))
        return tiny_model(SmolLM3ForCausalLM)

    monkeypatch.setattr(SmolLM3ForCausalLM, "from_pretrained", load)
    pipeline("text-generation", tokenizer=tokenizer, revision="main", token="t", cache_dir="c")
    where = {"revision": "main", "token": "t", "cache_dir": "c"}
    assert asked == [("HuggingFaceTB/SmolLM3-3B", {"dtype": "auto", "device_map": "auto", **where})]


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(
    "arguments", [{"device_map": 0}, {"device": 0}, {"device": "cuda"}, {"device_map": "cuda:1"}]
)
def test_a_gpu_that_is_not_there_is_an_error(causal: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match=r"CUDA.*device_map='cpu'.*device_map='auto'"):
        pipeline("text-generation", causal, **arguments)
    model = tiny_model(SmolLM3ForCausalLM)
    with pytest.raises(DeviceError, match="CUDA"):
        pipeline("text-generation", model, str(causal), **arguments)


@pytest.mark.usefixtures("no_cuda")
def test_auto_takes_what_is_there(causal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for arguments in ({}, {"device_map": "auto"}, {"device": -1}):
        assert pipeline("text-generation", causal, **arguments).device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": None}, "task is missing"),
        ({"task": "text-genration"}, "did you mean 'text-generation'"),
        ({"task": "sentiment"}, "did you mean 'sentiment-analysis'"),
        ({"task": "translation"}, "'translation' is unknown"),
        ({"max_new_token": 3}, "did you mean 'max_new_tokens'"),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, "dtype is given twice"),
        ({"device_map": "auto"}, "device_map is given twice"),
        ({"model_kwargs": {"dtype": "float32"}, "dtype": "bfloat16"}, "dtype is given twice"),
        ({"dtype": "int7"}, "int7"),
        ({"batch_size": 0}, "batch_size"),
        ({"model_kwargs": {"atn_implementation": "sdpa"}}, "did you mean attn_implementation"),
        ({"trust_remote_code": True}, "trust_remote_code"),
    ],
    ids=str,
)
def test_wrong_arguments_get_one_clear_line(causal: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        pipeline(**{"task": "text-generation", "model": causal, "device": "cpu", **arguments})
    assert "\n" not in str(caught.value)


def test_a_loaded_model_must_fit_and_bring_its_tokenizer(tokenizer: SmolLM3Tokenizer) -> None:
    model = tiny_model(SmolLM3ForCausalLM)
    with pytest.raises(ParameterError, match="pass tokenizer="):
        pipeline("text-generation", model)
    with pytest.raises(
        ParameterError, match="needs a SmolLM3ForTokenClassification, not a SmolLM3ForCausalLM"
    ):
        pipeline("ner", model, tokenizer)
    with pytest.raises(ParameterError, match="dtype is for loading"):
        pipeline("text-generation", model, tokenizer, dtype="bfloat16")


def test_a_model_that_is_nowhere_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        pipeline("text-generation", str(tmp_path / "nowhere"))
