"""GenerationConfig: HF's file both ways, merging, and the values it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers

from smollm3.engine.params import SamplingParams
from smollm3.errors import CheckpointError, ParameterError
from smollm3.model.generation_config import UNSUPPORTED, GenerationConfig

FILE = {
    "_from_model_config": True,
    "bos_token_id": 128000,
    "do_sample": True,
    "eos_token_id": [128012, 128001],
    "pad_token_id": 128004,
    "temperature": 0.6,
    "top_p": 0.95,
    "transformers_version": "4.54.0",
}


def write(folder: Path, text: str) -> Path:
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    return folder


def test_a_file_reads_and_saves_with_its_unknown_fields(tmp_path: Path) -> None:
    config = GenerationConfig.from_pretrained(write(tmp_path, json.dumps(FILE)))
    assert config.temperature == 0.6
    assert config.eos_ids == {128012, 128001}
    assert config.padding_id == 128004
    assert config.extra == {"_from_model_config": True, "transformers_version": "4.54.0"}
    config.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy/generation_config.json").read_text()) == FILE
    assert GenerationConfig.from_pretrained(tmp_path / "copy") == config


def test_unknown_fields_never_act(tmp_path: Path) -> None:
    odd = {
        **FILE,
        "trust_remote_code": True,
        "custom_code": "import os",
        "extra": {"top_k": 3},
        "validate": 1,
    }
    config = GenerationConfig.from_dict(odd)
    plain = GenerationConfig.from_dict(FILE)
    assert config.sampling_params(5, 0) == plain.sampling_params(5, 0)
    assert "extra" not in config.extra
    assert config.validate is not None
    assert callable(config.validate)


def test_transformers_opens_what_we_save_and_we_what_it_saves(tmp_path: Path) -> None:
    config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.95, top_k=20, eos_token_id=[5, 6], min_p=0.1
    )
    config.save_pretrained(tmp_path / "ours")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    for name, value in config.to_dict().items():
        assert getattr(theirs, name) == value
    theirs.repetition_penalty = 1.25
    theirs.save_pretrained(tmp_path / "theirs")
    back = GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert back.repetition_penalty == 1.25
    assert back.merged(repetition_penalty=1.0).sampling_params(5, 0).temperature == 0.6


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00"])
def test_damaged_files_are_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(write(tmp_path, text))
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": math.nan},
        {"top_k": False},
        {"eos_token_id": "<eos>"},
        {"eos_token_id": [1, None]},
        {"eos_token_id": 1.5},
        {"pad_token_id": [0]},
        {"do_sample": "true"},
        {"max_new_tokens": 1.5},
        {"num_return_sequences": True},
        {"stop_strings": [1]},
        {"stop_strings": 5},
        {"bad_words_ids": [["a"]]},
        {"logit_bias": {"x": 1}},
    ],
    ids=str,
)
def test_wrong_values_of_a_file_or_constructor_are_refused(tmp_path: Path, field: dict[str, Any]) -> None:
    with pytest.raises(ParameterError) as caught:
        GenerationConfig.from_dict({**FILE, **field})
    assert "\n" not in str(caught.value)
    assert next(iter(field)) in str(caught.value)


def test_the_later_wins_and_none_sets_nothing() -> None:
    base = GenerationConfig(temperature=0.6, top_p=0.95, eos_token_id=5)
    merged = base.merged(GenerationConfig(temperature=0.9), top_p=None, top_k=7)
    assert (merged.temperature, merged.top_p, merged.top_k, merged.eos_token_id) == (0.9, 0.95, 7, 5)
    assert base.merged(eos_token_id=[]).eos_ids == frozenset()
    assert base == GenerationConfig(temperature=0.6, top_p=0.95, eos_token_id=5), (
        "the original stays as it was"
    )


def test_every_unsupported_field_passes_at_its_neutral_values_and_no_other() -> None:
    for name, neutral in UNSUPPORTED.items():
        for value in (None, *neutral):
            GenerationConfig().merged(**{name: value})
        with pytest.raises(ParameterError, match=f"^{name}=.* is not supported"):
            GenerationConfig().merged(**{name: 17})


def test_a_neutral_argument_wins_over_the_files_wish() -> None:
    config = GenerationConfig.from_dict({"num_beams": 4})
    assert config.extra == {"num_beams": 4}
    assert config.merged(num_beams=1).extra == {}


def test_logit_bias_survives_json(tmp_path: Path) -> None:
    GenerationConfig(logit_bias={7: -3.5}).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).logit_bias == {7: -3.5}


def test_defaults_leave_sampling_as_the_engine_has_it() -> None:
    assert GenerationConfig().sampling_params(9, 3) == SamplingParams(9)
    assert GenerationConfig(min_length=10).sampling_params(9, 6).min_new_tokens == 4
    assert GenerationConfig(min_length=10, min_new_tokens=6).sampling_params(9, 6).min_new_tokens == 6


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0),
        ({"eos_token_id": 7}, 7),
        ({"eos_token_id": [8, 9]}, 8),
        ({"eos_token_id": [], "pad_token_id": 3}, 3),
    ],
)
def test_rows_are_filled_with_pad_else_the_first_eos_else_zero(fields: dict[str, Any], expected: int) -> None:
    assert GenerationConfig(**fields).padding_id == expected
