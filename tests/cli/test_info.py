"""`smollm3 info`: the machine, and models by their headers."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3.cli.info import read_model
from smollm3.cli.machine import (
    _why_no_cuda,
    describe_cpu,
    describe_extras,
    describe_machine,
    installed_version,
    machine_lines,
    total_memory,
)
from smollm3.cli.main import main
from smollm3.cli.model_facts import (
    describe_model,
    gigabytes,
    kv_bytes_per_token,
    model_lines,
    shapes_from_config,
    weight_bytes,
)
from smollm3.model.config import SmolLM3Config
from smollm3.model.smollm3 import SmolLM3ForCausalLM

REAL = SmolLM3Config(max_position_embeddings=65536, rope_theta=5e6, dtype="bfloat16")
TINY: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_smollm3_has_the_published_numbers() -> None:
    facts = describe_model("HuggingFaceTB/SmolLM3-3B", REAL)
    assert facts["parameters"] == 3_075_098_624
    assert facts["weights_bytes"]["bfloat16"] == 6_150_197_248
    assert facts["nope_layers"] == [3, 7, 11, 15, 19, 23, 27, 31, 35]
    assert facts["kv_bytes_per_1000_tokens"]["bfloat16"] == 73_728_000
    assert facts["context_size"] == 65536
    text = "\n".join(model_lines(facts))
    for part in (
        "3,075,098,624 (3.08 billion)",
        "9 of them without positions",
        "bfloat16 6.15 GB",
        "73.7 MB",
    ):
        assert part in text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False, "head_dim": 16},
        {"no_rope_layers": [1] * 5, "num_key_value_heads": 4},
    ],
)
def test_the_shapes_are_those_of_the_model(fields: dict[str, Any]) -> None:
    config = SmolLM3Config(**{**TINY, **fields})
    with torch.device("meta"):
        model = SmolLM3ForCausalLM(config)
    built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes_from_config(config) == built


def test_memory_by_hand() -> None:
    shapes = {"model.embed_tokens.weight": (10, 64), "model.layers.0.mlp.up_proj.weight": (128, 1024)}
    matrix, rest = 128 * 1024, 640
    assert weight_bytes(shapes) == {
        "float32": 4 * (matrix + rest),
        "bfloat16": 2 * (matrix + rest),
        "int8": matrix + 4 * 128 + 2 * rest,
        "nf4": matrix // 2 + matrix // 64 + 4 * (matrix // 64 // 256) + 2 * rest,
    }
    config = SmolLM3Config(**TINY)
    assert kv_bytes_per_token(config) == {"float32": 2 * 5 * 2 * 8 * 4, "bfloat16": 2 * 5 * 2 * 8 * 2}
    assert gigabytes(1.5e9) == "1.50 GB"
    assert gigabytes(73.7e6) == "73.7 MB"


def test_a_checkpoint_that_lacks_tensors_says_so() -> None:
    config = SmolLM3Config(**TINY)
    stored = dict(shapes_from_config(config))
    del stored["model.norm.weight"]
    facts = describe_model("tiny", config, stored)
    assert facts["missing_tensors"] == ["model.norm.weight"]
    assert "1 tensors are missing, the first is model.norm.weight" in "\n".join(model_lines(facts))
    assert describe_model("tiny", config)["missing_tensors"] == []


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        (None, "stored as     bfloat16"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "stored as     bfloat16, matrices in nf4"),
        ({"load_in_4bit": True}, "stored as     bfloat16, matrices in fp4"),
        ({"load_in_8bit": True}, "stored as     bfloat16, matrices in int8"),
        ({"quant_method": "smollm3", "scheme": "int4"}, "stored as     bfloat16, matrices in int4"),
    ],
)
def test_a_quantised_checkpoint_says_in_what(stored: dict[str, Any] | None, line: str) -> None:
    config = SmolLM3Config(**TINY, dtype="bfloat16", quantization_config=stored)
    assert line in model_lines(describe_model("m", config))


def test_a_folder_with_a_config_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(REAL.to_json_string())
    assert main(["info", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["parameters"], facts["model"]) == (3_075_098_624, str(tmp_path))


def test_the_small_model_by_its_header(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = read_model(str(small_model))
    assert facts["parameters"] == 134_515_008
    assert (facts["layers"], facts["nope_layers"], facts["context_size"]) == (30, [], 8192)
    assert facts["missing_tensors"] == []
    assert main(["info", str(small_model)]) == 0
    assert "134,515,008 (134.5 million)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", "none"),
        (lambda folder: folder, "config.json"),
    ],
)
def test_no_model_is_one_line(
    make: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(make(tmp_path))]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_machine_as_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"] == installed_version("torch")
    assert facts["cpu"]["cores"] >= 1
    assert f"torch         {facts['packages']['torch']}" in text
    assert facts["cpu"]["name"] in text
    assert re.search(r"^bitsandbytes ", text, re.MULTILINE)
    if not torch.cuda.is_available():
        assert "--device cpu works" in text


def test_accelerators_are_listed_or_the_reason_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory, major, minor = "NVIDIA H200", 150_000_000_000, 9, 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    lines = machine_lines(describe_machine())
    assert "cuda:1        NVIDIA H200, 150 GB" in lines
    assert "built without CUDA" in _why_no_cuda(None)
    assert "finds no NVIDIA driver" in _why_no_cuda("12.8")


def test_the_processor_is_read_on_intel_and_arm(tmp_path: Path) -> None:
    intel = tmp_path / "intel"
    intel.write_text(
        "processor\t: 0\nmodel name\t: Xeon 6\nflags\t\t: fpu avx2 amx_bf16 avx512f\n\nmodel name\t: other\n"
    )
    cpu = describe_cpu(intel)
    assert (cpu["name"], cpu["instruction_sets"]) == ("Xeon 6", ["avx2", "avx512f", "amx_bf16"])
    arm = tmp_path / "arm"
    arm.write_text("Features\t: fp asimd bf16 i8mm\n")
    assert describe_cpu(arm)["instruction_sets"] == ["asimd", "bf16", "i8mm"]
    assert describe_cpu(tmp_path / "none")["instruction_sets"] == []
    assert (total_memory() or 0) > 1e8


def test_an_extra_that_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3.cli.machine.installed_version", lambda package: None)
    extras = {extra["package"]: extra["missing"] for extra in describe_extras()}
    assert extras["bitsandbytes"] == "not installed: pip install 'smollm3[bitsandbytes]'"
    assert extras["starlette"] == extras["llguidance"] == "not installed: pip install 'smollm3[serve]'"
    assert set(extras) == {"bitsandbytes", "flash-attn", "starlette", "llguidance"}


def test_a_config_is_read_without_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(REAL.to_json_string())
    code = (
        "import sys\nfrom smollm3.cli.main import main\n"
        f"main(['info', {str(tmp_path)!r}])\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
