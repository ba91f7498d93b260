"""The Auto classes: the right class behind each, configs, foreign checkpoints, random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_config, tiny_model, write_tokenizer

import smollm3
from smollm3 import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from smollm3.errors import ConfigError, ModelNotFoundError, ParameterError

CLASSES = {
    "AutoModel": "SmolLM3Model",
    "AutoModelForCausalLM": "SmolLM3ForCausalLM",
    "AutoModelForSequenceClassification": "SmolLM3ForSequenceClassification",
    "AutoModelForTokenClassification": "SmolLM3ForTokenClassification",
    "AutoModelForQuestionAnswering": "SmolLM3ForQuestionAnswering",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("auto")
    tiny_model(smollm3.SmolLM3ForCausalLM).save_pretrained(path)
    return write_tokenizer(path)


@pytest.mark.parametrize(("auto", "name"), CLASSES.items())
def test_each_loads_what_its_class_saved(auto: str, name: str, tmp_path: Path) -> None:
    model = tiny_model(getattr(smollm3, name))
    model.save_pretrained(tmp_path)
    loaded: Any = getattr(smollm3, auto).from_pretrained(tmp_path)
    assert type(loaded).__name__ == name
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    assert not loaded.training


@pytest.mark.parametrize(("auto", "name"), CLASSES.items())
def test_each_builds_from_a_config(auto: str, name: str) -> None:
    model: Any = getattr(smollm3, auto).from_config(tiny_config(), attn_implementation="eager")
    assert type(model).__name__ == name
    assert model.attn_implementation == "eager"
    for argument in ("dtype", "torch_dtype"):
        built: Any = getattr(smollm3, auto).from_config(tiny_config(), **{argument: torch.bfloat16})
        assert {parameter.dtype for parameter in built.parameters()} == {torch.bfloat16}
    with pytest.raises(ParameterError, match="two spellings"):
        getattr(smollm3, auto).from_config(tiny_config(), dtype=torch.float32, torch_dtype=torch.float32)


def test_none_of_them_has_instances() -> None:
    for name in (*CLASSES, "AutoConfig", "AutoTokenizer"):
        with pytest.raises(TypeError, match=rf"{name}.from_pretrained"):
            getattr(smollm3, name)()


def test_the_pages_loading_arguments(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), torch_dtype=torch.bfloat16, device_map="cpu", attn_implementation="sdpa"
    )
    assert model.dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto").dtype == torch.float32
    base = AutoModel.from_pretrained(folder)
    assert torch.equal(base.embed_tokens.weight.bfloat16(), model.model.embed_tokens.weight)


def test_a_config_alone_needs_no_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.vocab_size, config.no_rope_layers) == (400, [1, 1, 1, 0])
    assert AutoConfig.from_pretrained(str(tmp_path), max_position_embeddings=99).max_position_embeddings == 99
    with pytest.raises(ConfigError, match="num_layers"):
        AutoConfig.from_pretrained(tmp_path, num_layers=3)


def test_a_tokenizer_by_path(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        folder, padding_side="left", use_fast=True, trust_remote_code=False
    )
    assert tokenizer.padding_side == "left"
    batch = tokenizer(["a", "b c d"], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for refused in ({"use_fast": False}, {"trust_remote_code": True}):
        with pytest.raises(ParameterError, match="refused"):
            AutoTokenizer.from_pretrained(folder, **refused)


def test_the_trained_model_by_its_short_name(small_model: Path) -> None:
    config = AutoConfig.from_pretrained(small_model)
    assert config.num_hidden_layers == 30
    assert config.no_rope_layers == [1] * 30
    assert AutoTokenizer.from_pretrained(small_model).chat_template


@pytest.mark.parametrize("model_type", ["qwen2", "mistral", "bert"])
def test_a_foreign_checkpoint_is_named(folder: Path, tmp_path: Path, model_type: str) -> None:
    data = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, "model_type": model_type}))
    for auto in ("AutoConfig", *CLASSES):
        with pytest.raises(ConfigError, match=rf"model_type '{model_type}'") as caught:
            getattr(smollm3, auto).from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_name_that_leads_nowhere(tmp_path: Path) -> None:
    for auto in ("AutoConfig", "AutoTokenizer", *CLASSES):
        with pytest.raises(ModelNotFoundError):
            getattr(smollm3, auto).from_pretrained(tmp_path / "nothing")
