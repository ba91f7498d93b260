"""`smollm3 export`: files that llama.cpp runs with our logits and our answers; one line where it cannot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_cpp_server import LlamaCpp, llama_cpp_process
from tiny_models import tiny_model, write_tokenizer

from smollm3 import AutoModelForCausalLM, AutoTokenizer, SmolLM3ForCausalLM
from smollm3.cli.main import main
from smollm3.native import library
from smollm3.native.library import NativeStatus

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 64, "initializer_range": 0.15}
LLAMA = {"no_rope_layers": [1] * 4}
IDS = [(7 * i * i + 3 * i) % 350 + 10 for i in range(90)]


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[LlamaCpp]:
    with llama_cpp_process() as running:
        yield running


def save(folder: Path, *, tokenizer: bool = True, **changes: Any) -> SmolLM3ForCausalLM:
    model = tiny_model(SmolLM3ForCausalLM, **{**SIZES, "rope_theta": 1000.0, **changes})
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder)
    return model


def scaled(**rope: Any) -> dict[str, Any]:
    return {"rope_scaling": rope}


SHAPES: dict[str, dict[str, Any]] = {
    "every fourth layer without positions": {},
    "llama": LLAMA,
    "biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "untied": {"tie_word_embeddings": False},
    "wide heads": {"head_dim": 64},
    "rows without tokens": {"vocab_size": 500},
    "no tokenizer": {"tokenizer": False},
    "linear": scaled(rope_type="linear", factor=2.0),
    "yarn": scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "yarn with an attention factor": scaled(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=0.9
    ),
    "llama3": {
        **LLAMA,
        **scaled(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_computes_the_models_logits(
    shape: str, llama_cpp: LlamaCpp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(tmp_path / "model", **SHAPES[shape])
    file = tmp_path / "model.gguf"
    assert main(["export", str(tmp_path / "model"), "--gguf", str(file), "--type", "f32"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{file}\n"
    assert f"in f32: {file.stat().st_size / 1e6:.1f} MB\n" in err
    assert ("no tokenizer" in err) == (shape == "no tokenizer")
    expected = model(torch.tensor([IDS])).logits[0, -1].log_softmax(-1)
    found = llama_cpp.next_logprobs(file, IDS)
    assert len(found) > 20
    for token_id, logprob in found.items():
        # llama.cpp keeps keys and values in half precision
        assert expected[token_id].item() == pytest.approx(logprob, abs=0.02), token_id
    assert max(found.values()) - min(found.values()) > 1, "logits that say nothing would always agree"


PROMPTS = ("What is the capital of France?", "Why is the sky blue?", "Write a haiku about rain.")
# The most by which two programs' logits differ here, by where they round activations and caches.
TIES = {"bf16": 0.25, "q8_0": 0.5, "q4_0": 0.5}


@pytest.mark.parametrize("kind", ["bf16", "q8_0", "q4_0"])
def test_llama_cpp_answers_as_we_do(
    kind: str, small_model: Path, llama_cpp: LlamaCpp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.gguf"
    assert main(["export", str(small_model), "--gguf", str(file), "--type", kind]) == 0
    assert "note:" not in capsys.readouterr().err
    tokenizer, model = AutoTokenizer.from_pretrained(file), AutoModelForCausalLM.from_pretrained(file)
    same = total = 0
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
        assert llama_cpp.tokenize(file, tokenizer.decode(ids)) == ids
        theirs = llama_cpp.greedy(file, ids, 24)
        steps = torch.tensor([ids + theirs])
        with torch.no_grad():
            logits = model(steps).logits[0, len(ids) - 1 : -1].float()
        behind = logits.max(-1).values - logits.gather(1, torch.tensor(theirs)[:, None])[:, 0]
        assert behind.max() <= TIES[kind], f"{prompt}: not even a near tie"
        same, total = same + int((behind == 0).sum()), total + len(theirs)
        assert len(theirs) == 24 or theirs[-1] == tokenizer.eos_token_id
    assert same >= 0.9 * total


def test_without_the_native_library_blocks_are_rounded_plainly_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--type", "q4_0", "--gguf"]
    assert main([*words, str(tmp_path / "native.gguf")]) == 0
    capsys.readouterr()
    absent = NativeStatus(False, "no compiler was found")
    monkeypatch.setattr(library, "native_status", lambda: absent)
    assert main([*words, str(tmp_path / "plain.gguf")]) == 0
    err = capsys.readouterr().err
    assert "note: rounded plainly, the native quantiser is absent: no compiler was found\n" in err
    files = [(tmp_path / name).read_bytes() for name in ("native.gguf", "plain.gguf")]
    assert len(files[0]) == len(files[1])
    assert files[0] != files[1]
    words[3] = "bf16"
    assert main([*words, str(tmp_path / "bf16.gguf")]) == 0
    assert "note:" not in capsys.readouterr().err


def test_the_configs_ends_reach_the_file(tmp_path: Path) -> None:
    from smollm3.checkpoint.gguf import read_metadata

    save(tmp_path / "model", eos_token_id=[3, 17])
    assert main(["export", str(tmp_path / "model"), "--gguf", str(tmp_path / "x.gguf")]) == 0
    metadata = read_metadata(tmp_path / "x.gguf")
    assert metadata["tokenizer.ggml.eos_token_id"] == 3
    assert metadata["tokenizer.ggml.eot_token_id"] == 17
    assert metadata["general.name"] == "model"
    assert (
        metadata["tokenizer.chat_template"] == AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
    )


def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "model")
    save(tmp_path / "odd", no_rope_layer_interval=2)
    save(tmp_path / "narrow", hidden_size=48)
    assert main(["quantize", str(tmp_path / "model"), "--to", "int8", "-o", str(tmp_path / "int8")]) == 0
    (tmp_path / "there.gguf").write_text("mine")
    names = {path.name for path in tmp_path.iterdir()}
    refused = {
        ("model", "there.gguf", "bf16"): f"{tmp_path}/there.gguf exists",
        ("model", "no/x.gguf", "bf16"): f"{tmp_path}/no is no folder",
        ("model", "x.gguf", "q4_1"): "--type q4_1: give one of bf16, q8_0, q4_0, f16, f32",
        ("odd", "x.gguf", "bf16"): f"{tmp_path}/odd: no_rope_layers leaves positions out of the layers 1, 3",
        ("narrow", "x.gguf", "q4_0"): "48 columns, which do not divide into the q8_0 blocks of 32",
        ("int8", "x.gguf", "bf16"): f"{tmp_path}/int8 is quantised already",
        ("absent", "x.gguf", "bf16"): "absent",
    }
    capsys.readouterr()
    for (model, file, kind), message in refused.items():
        assert main(["export", str(tmp_path / model), "--gguf", str(tmp_path / file), "--type", kind]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "there.gguf").read_text() == "mine"


def test_a_file_of_the_small_models_weights_comes_back_whole(small_model: Path, tmp_path: Path) -> None:
    """bf16 of a Q4_1 file: the very floats that loading it as bfloat16 gives."""
    file = tmp_path / "small.gguf"
    assert main(["export", "smollm2-135m", "--gguf", str(file)]) == 0
    expected = SmolLM3ForCausalLM.from_pretrained(small_model, dtype="bfloat16").state_dict()
    found = SmolLM3ForCausalLM.from_pretrained(file)
    assert found.dtype == torch.bfloat16
    for name, weight in found.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert found.config.no_rope_layers == [1] * 30
    text = "Hello <|im_start|> 123 4567"
    assert AutoTokenizer.from_pretrained(file)(text) == AutoTokenizer.from_pretrained(small_model)(text)
