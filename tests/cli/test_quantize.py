"""`smollm3 quantize`: a folder that loads, answers and is whole or not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, write_tokenizer

from smollm3 import AutoModelForCausalLM, AutoTokenizer, PackedConfig, SmolLM3ForCausalLM
from smollm3.cli.main import main
from smollm3.model.heads import SmolLM3ForSequenceClassification

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
IDS = torch.tensor([[5, 9, 11, 40]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model with a tokenizer."""
    path = tmp_path / "plain"
    tiny_model(SmolLM3ForCausalLM, **SIZES).save_pretrained(path)
    return write_tokenizer(path)


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (["--to", "int4"], PackedConfig("int4")),
        (["--to", "int8", "--group-size", "32"], PackedConfig("int8", 32)),
        (["--to", "nf4", "--head", "nf4"], PackedConfig("nf4", head="nf4")),
        (
            ["--to", "int4", "--with-minimum", "--head", "none"],
            PackedConfig("int4", symmetric=False, head=None),
        ),
    ],
    ids=str,
)
def test_the_folder_loads_and_computes_as_if_quantised_in_memory(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], config: PackedConfig
) -> None:
    target = tmp_path / "packed"
    assert main(["quantize", str(folder), *words, "-o", str(target)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n"
    assert f"in {config.scheme}: " in err
    assert "of quantised weights" in err
    assert not list(tmp_path.glob(".*")), "no parts are left"
    expected = SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=config)
    model = AutoModelForCausalLM.from_pretrained(target)
    assert all(torch.equal(tensor, expected.state_dict()[key]) for key, tensor in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()


def test_info_counts_the_weights_that_the_codes_stand_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(folder), "--to", "int4", "-o", str(tmp_path / "packed")]) == 0
    capsys.readouterr()
    counts = []
    for path in (folder, tmp_path / "packed"):
        assert main(["info", str(path), "--json"]) == 0
        counts.append(json.loads(capsys.readouterr().out)["parameters"])
    assert counts[0] == counts[1] == SmolLM3ForCausalLM.from_pretrained(folder).num_parameters()


def test_a_model_without_a_tokenizer_and_the_default_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(SmolLM3ForCausalLM, **SIZES).save_pretrained(tmp_path / "model.v1")
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", "./model.v1", "--to", "int8"]) == 0
    assert capsys.readouterr().out == "model.v1-int8\n"
    files = {path.name for path in (tmp_path / "model.v1-int8").iterdir()}
    assert files == {"config.json", "generation_config.json", "model.safetensors"}


def test_templates_and_other_heads_come_along(tmp_path: Path) -> None:
    source = tmp_path / "classifier"
    tiny_model(SmolLM3ForSequenceClassification, num_labels=3, **SIZES).save_pretrained(source)
    write_tokenizer(source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ messages[0].content }}")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    assert main(["quantize", str(source), "--to", "nf4", "-o", str(tmp_path / "packed")]) == 0
    packed = tmp_path / "packed"
    assert (packed / "additional_chat_templates" / "tools.jinja").is_file()
    assert (packed / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((packed / "config.json").read_text())["architectures"] == [
        "SmolLM3ForSequenceClassification"
    ]
    plain = SmolLM3ForSequenceClassification.from_pretrained(source)
    model = SmolLM3ForSequenceClassification.from_pretrained(packed)
    assert torch.equal(model.score.weight, plain.score.weight)


def test_a_gguf_file_brings_its_tokenizer(small_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    assert main(["quantize", str(small_model), "--to", "int8", "-o", str(target)]) == 0
    text = "What is the capital of France?"
    assert AutoTokenizer.from_pretrained(target)(text) == AutoTokenizer.from_pretrained(small_model)(text)
    assert (target / "model.safetensors").stat().st_size < 145e6


REFUSED = {
    "scheme": (["--to", "int3"], "scheme='int3': give one of int4, int6, int8, nf4"),
    "group": (["--to", "int4", "--group-size", "128"], "does not divide the 192 columns"),
    "group size": (["--to", "int4", "--group-size", "7"], "group_size=7: give one of 32, 64, 128"),
    "minimum": (["--to", "nf4", "--with-minimum"], "symmetric=False"),
    "head": (["--to", "int4", "--head", "fp4"], "head='fp4'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words, message = REFUSED[name]
    assert main(["quantize", str(folder), *words, "-o", str(tmp_path / "packed")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_nothing_is_overwritten_and_a_failure_leaves_no_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["quantize", str(folder), "--to", "int4", "-o", str(folder)]) == 1
    assert f"{folder} exists" in capsys.readouterr().err
    packed = tmp_path / "packed"
    assert main(["quantize", str(folder), "--to", "int4", "-o", str(packed)]) == 0
    assert main(["quantize", str(packed), "--to", "int8", "-o", str(tmp_path / "again")]) == 1
    assert "quantised already" in capsys.readouterr().err

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smollm3.checkpoint.safetensors._write_tensors", full)
    assert main(["quantize", str(folder), "--to", "int4", "-o", str(tmp_path / "full")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "packed"}


def test_a_damaged_model_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    assert main(["quantize", str(folder), "--to", "int4", "-o", str(tmp_path / "packed")]) == 1
    assert "up_proj.weight' holds NaN or infinite weights: it cannot be quantised" in capsys.readouterr().err


def write_text(path: Path, words: int = 3000) -> Path:
    path.write_text(" ".join(f"the engine of London number {i} met Ada" for i in range(words // 8)))
    return path


def test_gptq_writes_what_the_library_makes_of_the_texts_windows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smollm3.cli.calibration import calibration_windows
    from smollm3.quantization.gptq_model import gptq_

    text, target = write_text(tmp_path / "text.txt"), tmp_path / "packed"
    words = ["quantize", str(folder), "--to", "int4", "--group-size", "32", "-o", str(target)]
    assert main([*words, "--method", "gptq", "--calibration", str(text)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n"
    windows = calibration_windows(folder, text, 512)
    assert f"calibrating on {512 * len(windows)} of the " in err
    expected = SmolLM3ForCausalLM.from_pretrained(folder)
    gptq_(expected, PackedConfig("int4", 32), windows)
    found = AutoModelForCausalLM.from_pretrained(target)
    assert all(torch.equal(tensor, expected.state_dict()[key]) for key, tensor in found.state_dict().items())
    assert AutoTokenizer.from_pretrained(target)("Ada")["input_ids"]


def test_calibration_windows_lie_all_over_the_text(folder: Path, tmp_path: Path) -> None:
    from smollm3.cli import calibration

    text = write_text(tmp_path / "text.txt", words=60_000)
    ids = AutoTokenizer.from_pretrained(folder).encode(text.read_text(), add_special_tokens=False)
    windows = calibration.calibration_windows(folder, text, 65536)
    assert len(windows) == calibration.MAX_WINDOWS
    assert {tuple(window.shape) for window in windows} == {(1, calibration.WINDOW)}
    assert windows[0][0].tolist() == ids[:512]
    step = len(ids) // 512 // 64
    assert windows[1][0].tolist() == ids[step * 512 : (step + 1) * 512]
    assert {tuple(w.shape) for w in calibration.calibration_windows(folder, text, 128)} == {(1, 128)}


NOT_CALIBRATED = {
    "no text": (["--to", "int4", "--method", "gptq"], "pass --calibration FILE"),
    "no method": (["--to", "int4", "--calibration", "text.txt"], "pass --method gptq"),
    "unknown": (["--to", "int4", "--method", "awq"], "--method awq: give one of nearest, gptq"),
    "scheme": (
        ["--to", "nf4", "--method", "gptq", "--calibration", "text.txt"],
        "GPTQ rounds to int4, not to nf4",
    ),
    "missing": (
        ["--to", "int4", "--method", "gptq", "--calibration", "none.txt"],
        "none.txt cannot be read: No such file",
    ),
    "binary": (
        ["--to", "int4", "--method", "gptq", "--calibration", "binary"],
        "binary cannot be read: it is not UTF-8",
    ),
    "short": (
        ["--to", "int4", "--method", "gptq", "--calibration", "short.txt"],
        "tokens, and a window has 512: give more",
    ),
}


@pytest.mark.parametrize("case", NOT_CALIBRATED)
def test_what_cannot_be_calibrated_is_one_line(
    case: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "short.txt").write_text("Ada")
    words, message = NOT_CALIBRATED[case]
    assert main(["quantize", str(folder), *words, "-o", "packed"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "packed").exists()


def test_a_packed_model_is_not_calibrated_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(folder), "--to", "int8", "-o", str(tmp_path / "packed")]) == 0
    capsys.readouterr()
    words = ["--to", "int4", "--method", "gptq", "--calibration", str(write_text(tmp_path / "text.txt"))]
    assert main(["quantize", str(tmp_path / "packed"), *words, "-o", str(tmp_path / "again")]) == 1
    assert f"{tmp_path / 'packed'} is quantised already" in capsys.readouterr().err
