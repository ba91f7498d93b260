"""The arguments of from_pretrained: each spelling that works, and one line for each that does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import edit_config
from tiny_models import tiny_config, tiny_model

from smollm3.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    MissingDependencyError,
    ModelNotFoundError,
    ParameterError,
)
from smollm3.model.config import SmolLM3Config
from smollm3.model.smollm3 import SmolLM3ForCausalLM, SmolLM3Model
from smollm3.quantization.config import BitsAndBytesConfig

load: Any = SmolLM3ForCausalLM.from_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model, stored in bfloat16."""
    path = tmp_path_factory.mktemp("arguments")
    tiny_model(SmolLM3ForCausalLM).bfloat16().save_pretrained(path)
    return path


# dtype


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, torch.bfloat16),
        ("auto", torch.bfloat16),
        (torch.float32, torch.float32),
        ("float32", torch.float32),
        ("torch.float32", torch.float32),
        ("float16", torch.float16),
        (torch.float64, torch.float64),
    ],
)
def test_a_dtype_under_either_name(name: str, value: Any, expected: torch.dtype, folder: Path) -> None:
    model = load(folder, **{name: value})
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.dtype == expected
    assert model.config.dtype == model.config.torch_dtype == str(expected).removeprefix("torch.")


def test_both_names_may_agree_and_may_not_disagree(folder: Path) -> None:
    assert load(folder, dtype="float32", torch_dtype=torch.float32).dtype == torch.float32
    assert load(folder, dtype="auto", torch_dtype=None).dtype == torch.bfloat16
    for other in (torch.float16, "auto"):
        with pytest.raises(ParameterError, match="one argument and disagree"):
            load(folder, dtype=torch.float32, torch_dtype=other)


def test_auto_is_what_the_config_says_else_what_is_stored(folder: Path, tmp_path: Path) -> None:
    tiny_model(SmolLM3ForCausalLM).half().save_pretrained(tmp_path)
    edit_config(tmp_path, dtype=None, torch_dtype=None)
    assert load(tmp_path, dtype="auto").dtype == torch.float16
    edit_config(tmp_path, dtype="float32", torch_dtype=None)
    assert load(tmp_path, dtype="auto").dtype == torch.float32
    edit_config(tmp_path, dtype="int4")
    with pytest.raises(ConfigError, match=r"int4"):
        load(tmp_path, dtype="auto")


@pytest.mark.parametrize(
    "value", ["int8", torch.int8, torch.complex64, 16, True, "float8", "", "Auto", float]
)
def test_what_is_no_dtype_is_refused(value: Any, folder: Path) -> None:
    with pytest.raises(
        ParameterError, match=r"^torch_dtype=.*: give 'auto' or one of float32, float16, bfloat16"
    ):
        load(folder, torch_dtype=value)


# Every other argument, and that nothing is looked for before they are right

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"trust_remote_code": True}, "trust_remote_code=True is refused, no code of a checkpoint is ever run"),
    ({"use_safetensors": False}, "use_safetensors=False is refused, it asks for pickles"),
    ({"low_cpu_mem_usage": False}, "low_cpu_mem_usage=False is refused"),
    ({"torch_dtpye": "auto"}, "no argument 'torch_dtpye': did you mean torch_dtype"),
    ({"device_maps": "auto"}, "did you mean device_map"),
    ({"attention_implementation": "sdpa"}, "did you mean attn_implementation"),
    ({"num_label": 3}, "did you mean num_labels"),
    ({"extra": {}}, "no argument 'extra'"),
    ({"load_in_4bit": True}, r"quantization_config=BitsAndBytesConfig\(load_in_4bit=True\)"),
    ({"load_in_8bit": True}, r"quantization_config=BitsAndBytesConfig\(load_in_8bit=True\)"),
    ({"use_flash_attention_2": True}, "attn_implementation='flash_attention_2'"),
    ({"max_memory": {0: "1GB"}}, "stays on one device"),
    ({"zzz": 1}, "no argument 'zzz': it takes dtype, torch_dtype, device_map"),
    ({"attn_implementation": "flash"}, "'flash' is unknown: use one of eager, sdpa"),
    ({"attn_implementation": "kernels-community/flash-attn"}, "is unknown: use one of"),
    ({"device_map": "gpu"}, "device_map='gpu'"),
    ({"dtype": "bf16"}, "dtype='bf16'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda case: str(case)[:40])
def test_a_wrong_argument_is_found_before_the_model_is_looked_for(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        load(tmp_path / "nowhere", **arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelNotFoundError):
        load(tmp_path / "nowhere")


def test_flash_attention_on_a_cpu_is_never_something_else(folder: Path) -> None:
    with pytest.raises((DeviceError, MissingDependencyError), match="sdpa"):
        load(folder, attn_implementation="flash_attention_2", device_map="cpu")


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_chosen_for_the_run_and_not_stored(
    implementation: str, folder: Path, tmp_path: Path
) -> None:
    model = load(folder, attn_implementation=implementation)
    assert model.attn_implementation == implementation
    model.save_pretrained(tmp_path)
    assert load(tmp_path).attn_implementation == "sdpa"
    given = SmolLM3Config.from_json_file(folder / "config.json")
    given.attn_implementation = "eager"
    assert load(folder, config=given).attn_implementation == "eager"
    assert (
        load(folder, config=given, attn_implementation=implementation).attn_implementation == implementation
    )


@pytest.mark.parametrize(
    "switch",
    [
        {"trust_remote_code": False},
        {"trust_remote_code": None},
        {"use_safetensors": True},
        {"use_safetensors": None},
        {"low_cpu_mem_usage": True},
        {"local_files_only": True, "token": False, "revision": None, "cache_dir": None},
        {"ignore_mismatched_sizes": True},
    ],
)
def test_the_usual_switches_are_taken(switch: dict[str, Any], folder: Path) -> None:
    assert torch.equal(load(folder, **switch).lm_head.weight, load(folder).lm_head.weight)


def test_a_subfolder(folder: Path) -> None:
    model = load(str(folder.parent), subfolder=folder.name)
    assert torch.equal(model.lm_head.weight, load(folder).lm_head.weight)


# The config


def test_overrides_win_over_the_file(folder: Path) -> None:
    model = load(folder, max_position_embeddings=99, attention_dropout=0.5, use_cache=False)
    config = model.config
    assert (config.max_position_embeddings, config.attention_dropout, config.use_cache) == (99, 0.5, False)
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}
    stretched = SmolLM3Model.from_pretrained(folder, rope_scaling=yarn, max_position_embeddings=1024)
    assert stretched.config.rope_parameters is not None
    assert stretched.config.rope_parameters["rope_type"] == "yarn"
    assert stretched.rotary_emb.scaling == pytest.approx(1.0693147)


def test_a_given_config_is_used_and_not_touched(folder: Path) -> None:
    given = tiny_config(rms_norm_eps=0.5)
    before = given.to_dict()
    model = load(folder, config=given, max_position_embeddings=99)
    assert model.config.rms_norm_eps == 0.5
    assert model.config.max_position_embeddings == 99
    assert model.config is not given
    assert given.to_dict() == before


@pytest.mark.parametrize("given", [{"hidden_size": 32}, "config.json", 3])
def test_a_config_of_another_kind_is_refused(given: Any, folder: Path) -> None:
    with pytest.raises(ParameterError, match=f"config is a {type(given).__name__}: give a SmolLM3Config"):
        load(folder, config=given)


def test_a_config_that_does_not_fit_the_weights(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has the shape .* its config asks for"):
        load(folder, intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"lacks 9 of the .* 'model.layers.4"):
        load(folder, num_hidden_layers=5, no_rope_layers=[1] * 5)
    with pytest.raises(ConfigError, match="num_attention_heads"):
        load(folder, num_attention_heads=5)


def test_errors_in_files_name_them(folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path)
    edit_config(tmp_path, hidden_size="many")
    with pytest.raises(ConfigError, match=f"{tmp_path}.*hidden_size"):
        load(tmp_path)
    edit_config(tmp_path, hidden_size=32, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigError, match=f"{tmp_path}.*'gptq'"):
        load(tmp_path)
    edit_config(tmp_path, quantization_config=None)
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(ConfigError, match=f"{tmp_path}: generation_config.json: .*temperature"):
        load(tmp_path)
    SmolLM3Model.from_pretrained(tmp_path)  # which generates nothing and does not care


def test_a_config_that_asks_for_quantisation_is_heard(folder: Path) -> None:
    given = SmolLM3Config.from_json_file(folder / "config.json")
    given.quantization_config = BitsAndBytesConfig(load_in_8bit=True).to_dict()
    model = load(folder, config=given)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear8bit"
    assert model.config.quantization_config["load_in_8bit"] is True
