"""BitsAndBytesConfig: HF's fields, defaults and files; one line for what cannot be meant."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from smollm3 import BitsAndBytesConfig
from smollm3.errors import ConfigError, ParameterError, SmolLM3Error

ASKED: list[dict[str, Any]] = [
    {},
    {"load_in_8bit": True},
    {"load_in_4bit": True},
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
    {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16", "bnb_4bit_quant_storage": "bfloat16"},
    {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.float32},
    {"load_in_8bit": True, "llm_int8_threshold": 4.5, "llm_int8_skip_modules": ["lm_head", "o_proj"]},
    {"load_in_8bit": True, "llm_int8_has_fp16_weight": True, "llm_int8_enable_fp32_cpu_offload": True},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_fields_and_files_are_those_of_transformers(asked: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = BitsAndBytesConfig(**asked), transformers.BitsAndBytesConfig(**asked)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.to_diff_dict() == theirs.to_diff_dict()
    assert ours.to_json_string() == theirs.to_json_string()
    for name in ours.to_dict():
        if not name.startswith("_"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert ours.quantization_method() == theirs.quantization_method()
    assert ours.is_quantizable() == theirs.is_quantizable()
    ours.to_json_file(tmp_path / "ours.json")
    theirs.to_json_file(tmp_path / "theirs.json")
    assert json.loads((tmp_path / "ours.json").read_text()) == json.loads(
        (tmp_path / "theirs.json").read_text()
    )


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_stored_config_reads_back(asked: dict[str, Any]) -> None:
    config = BitsAndBytesConfig(**asked)
    assert BitsAndBytesConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    theirs = json.loads(json.dumps(transformers.BitsAndBytesConfig(**asked).to_dict()))
    assert BitsAndBytesConfig.from_dict(theirs) == config
    assert transformers.BitsAndBytesConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_defaults_and_order_of_arguments_are_those_of_transformers() -> None:
    import inspect

    def signature(made: type) -> dict[str, Any]:
        parameters = inspect.signature(made).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}

    ours, theirs = signature(BitsAndBytesConfig), signature(transformers.BitsAndBytesConfig)
    assert list(ours.items()) == list(theirs.items())


def test_a_dtype_has_three_spellings() -> None:
    spellings = (torch.bfloat16, "bfloat16", "torch.bfloat16")
    configs = [BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype) for dtype in spellings]
    assert all(config == configs[0] for config in configs)
    assert configs[0].bnb_4bit_compute_dtype is torch.bfloat16
    assert BitsAndBytesConfig(load_in_4bit=True).bnb_4bit_compute_dtype is torch.float32
    assert BitsAndBytesConfig(load_in_4bit=True).bnb_4bit_quant_storage is torch.uint8


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"load_in_4bit": True, "load_in_8bit": True}, "both True: choose one"),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf3"}, "'nf3': choose from nf4, fp4"),
    ({"bnb_4bit_quant_type": None}, "bnb_4bit_quant_type=None"),
    ({"load_in_4bits": True}, "'load_in_4bits': did you mean load_in_4bit?"),
    ({"bnb_4bit_compute_type": "bfloat16"}, "did you mean bnb_4bit_compute_dtype?"),
    ({"colour": "red"}, "'colour': it takes load_in_8bit"),
    ({"load_in_4bit": 1}, "load_in_4bit=1: give True or False"),
    ({"load_in_8bit": "yes"}, "load_in_8bit='yes'"),
    ({"bnb_4bit_use_double_quant": None}, "bnb_4bit_use_double_quant=None"),
    ({"bnb_4bit_compute_dtype": "bfloat"}, "bnb_4bit_compute_dtype='bfloat': choose from float32"),
    ({"bnb_4bit_compute_dtype": torch.int8}, "bnb_4bit_compute_dtype=torch.int8"),
    ({"bnb_4bit_compute_dtype": 16}, "bnb_4bit_compute_dtype=16"),
    ({"bnb_4bit_quant_storage": "int4"}, "bnb_4bit_quant_storage='int4': choose from uint8"),
    ({"llm_int8_threshold": -1.0}, "llm_int8_threshold=-1.0"),
    ({"llm_int8_threshold": float("nan")}, "llm_int8_threshold=nan"),
    ({"llm_int8_threshold": float("inf")}, "llm_int8_threshold=inf"),
    ({"llm_int8_threshold": True}, "llm_int8_threshold=True"),
    ({"llm_int8_threshold": "6"}, "llm_int8_threshold='6'"),
    ({"llm_int8_skip_modules": "lm_head"}, "give a list of module names"),
    ({"llm_int8_skip_modules": [1]}, "give a list of module names"),
    ({"llm_int8_skip_modules": [""]}, "give a list of module names"),
]


@pytest.mark.parametrize(("asked", "words"), REFUSED, ids=str)
def test_what_cannot_be_meant_is_refused_in_one_line(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError) as caught:
        BitsAndBytesConfig(**asked)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


STORED_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq'"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": False}, "both yes and no"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bits": 4}, "no argument 'bits'"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": ["nf4"]}, "['nf4']"),
]


@pytest.mark.parametrize(("stored", "words"), STORED_REFUSED, ids=str)
def test_a_stored_config_that_contradicts_itself_is_refused(stored: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, ParameterError)) as caught:
        BitsAndBytesConfig.from_dict(stored)
    assert words in str(caught.value)
    assert isinstance(caught.value, SmolLM3Error)


def test_an_older_file_says_it_once() -> None:
    for spelling in ("load_in_8bit", "_load_in_8bit"):
        assert BitsAndBytesConfig.from_dict({spelling: True}).load_in_8bit


def test_a_config_does_not_change() -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    with pytest.raises(AttributeError):
        config.load_in_4bit = False  # type: ignore[misc]
    config.to_dict()["llm_int8_skip_modules"].append("q_proj")
    assert config.llm_int8_skip_modules == ["lm_head"]


def test_no_two_switches_of_width_together() -> None:
    for four, eight in itertools.product((False, True), repeat=2):
        if not (four and eight):
            method = BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=eight).quantization_method()
            assert method == ("fp4" if four else "llm_int8" if eight else None)


def test_the_module_brings_neither_torch_nor_bitsandbytes_along() -> None:
    code = (
        "import sys, smollm3.quantization.config\n"
        "assert 'torch' not in sys.modules and 'bitsandbytes' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
