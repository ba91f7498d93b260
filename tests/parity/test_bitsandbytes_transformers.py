"""Quantised models against transformers': the same logits, the same files, each opening the other's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from smollm3 import (
    BitsAndBytesConfig,
    SmolLM3ForCausalLM,
    SmolLM3ForQuestionAnswering,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
)
from smollm3.quantization.bitsandbytes_library import bitsandbytes

SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True},
    "nf4 in bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": "bfloat16",
    },
    "int8": {"load_in_8bit": True},
    "int8 without outliers": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}
COMPUTE = ("float32", "bfloat16")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "NoPE, grouped, tied": {},
    "biases, untied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "one kv head, no NoPE": {"num_key_value_heads": 1, "no_rope_layers": [1, 1]},
}
HEADS = {
    SmolLM3ForSequenceClassification: "score",
    SmolLM3ForTokenClassification: "score",
    SmolLM3ForQuestionAnswering: "qa_outputs",
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    bitsandbytes()  # before transformers imports it, and quietly
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


def write_checkpoint(
    folder: Path, kind: str = "ForCausalLM", dtype: str = "bfloat16", **changes: Any
) -> Path:
    """Write a random checkpoint of transformers; its sizes are those that bitsandbytes runs on every CPU."""
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "no_rope_layers": [1, 0]}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "initializer_range": 0.1}
    config = transformers.SmolLM3Config(**{**sizes, **heads, **ids, **rope, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"SmolLM3{kind}")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def their_class(ours: type) -> Any:
    return getattr(transformers, ours.__name__)


def logits(model: Any) -> Tensor:
    ids = torch.randint(2, 96, (2, 11), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        out = model(ids)
    return out.start_logits if hasattr(out, "start_logits") else out.logits


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_and_files_are_the_same_both_ways(
    scheme: str, compute: str, dtype: str, tmp_path: Path
) -> None:
    plain = write_checkpoint(tmp_path / "plain", dtype=dtype)
    asked = {**SCHEMES[scheme], "bnb_4bit_compute_dtype": compute}
    theirs = transformers.SmolLM3ForCausalLM.from_pretrained(
        plain, quantization_config=transformers.BitsAndBytesConfig(**asked)
    )
    ours = SmolLM3ForCausalLM.from_pretrained(plain, quantization_config=BitsAndBytesConfig(**asked))
    theirs.save_pretrained(tmp_path / "theirs")  # before it runs: see the test of what it stores afterwards
    expected = logits(theirs)
    assert torch.equal(logits(ours), expected)
    ours.save_pretrained(tmp_path / "ours")

    left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert sorted(left) == sorted(right)
    for name in left:  # bytes: codes that are stored as floats may read as NaN
        assert left[name].dtype == right[name].dtype
        assert torch.equal(
            left[name].reshape(-1).view(torch.uint8), right[name].reshape(-1).view(torch.uint8)
        ), name
    stored = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs")]
    assert stored[0]["quantization_config"] == stored[1]["quantization_config"]

    opened = transformers.SmolLM3ForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits(opened), expected)
    for name in ("ours", "theirs"):
        again = SmolLM3ForCausalLM.from_pretrained(tmp_path / name)
        assert again.is_quantized
        assert again.dtype == getattr(torch, dtype)
        assert torch.equal(logits(again), expected)


@pytest.mark.parametrize("scheme", ["nf4 double", "int8"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_equal(architecture: str, scheme: str, tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain", **ARCHITECTURES[architecture])
    theirs = transformers.SmolLM3ForCausalLM.from_pretrained(
        plain, quantization_config=transformers.BitsAndBytesConfig(**SCHEMES[scheme])
    )
    ours = SmolLM3ForCausalLM.from_pretrained(
        plain, quantization_config=BitsAndBytesConfig(**SCHEMES[scheme])
    )
    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.equal(logits(ours), logits(theirs))
    assert torch.equal(logits(SmolLM3ForCausalLM.from_pretrained(tmp_path / "theirs")), logits(theirs))
    assert ours.num_parameters() == theirs.num_parameters()
    coded = {name for name, module in theirs.named_modules() if type(module).__name__.startswith("Linear")}
    assert coded == {
        name for name, module in ours.named_modules() if type(module).__name__.startswith("Linear")
    }


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("ours_class", HEADS, ids=lambda kind: kind.__name__)
def test_models_with_other_heads_open_both_ways(ours_class: Any, scheme: str, tmp_path: Path) -> None:
    """transformers quantises a head that has a bias; we leave it plain, and our file says so."""
    kind = ours_class.__name__.removeprefix("SmolLM3")
    plain = write_checkpoint(tmp_path / "plain", kind, num_labels=2 if kind == "ForQuestionAnswering" else 3)
    ours = ours_class.from_pretrained(plain, quantization_config=BitsAndBytesConfig(**SCHEMES[scheme]))
    ours.save_pretrained(tmp_path / "ours")
    opened = their_class(ours_class).from_pretrained(tmp_path / "ours")
    assert type(opened.get_submodule(HEADS[ours_class])) is torch.nn.Linear
    assert torch.equal(logits(opened), logits(ours))
    theirs = their_class(ours_class).from_pretrained(
        plain, quantization_config=transformers.BitsAndBytesConfig(**SCHEMES[scheme])
    )
    theirs.save_pretrained(tmp_path / "theirs")
    mine = ours_class.from_pretrained(tmp_path / "theirs")
    head = [type(model.get_submodule(HEADS[ours_class])) is torch.nn.Linear for model in (mine, theirs)]
    assert head[0] == head[1], "what is stored decides"
    if head[0]:
        assert torch.equal(logits(mine), logits(theirs))
    else:  # three rows: a shape on which bitsandbytes' own layer fails on some CPUs
        assert logits(mine).isfinite().all()


@pytest.mark.parametrize("scheme", ["nf4", "nf4 double", "fp4"])
def test_what_transformers_stores_after_a_run_is_read_right(scheme: str, tmp_path: Path) -> None:
    """On AVX512-BF16 CPUs it stores rounded scales, and without double quantisation transposed ones."""
    plain = write_checkpoint(tmp_path / "plain")
    theirs = transformers.SmolLM3ForCausalLM.from_pretrained(
        plain, quantization_config=transformers.BitsAndBytesConfig(**SCHEMES[scheme])
    )
    expected = logits(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    actual = logits(SmolLM3ForCausalLM.from_pretrained(tmp_path / "theirs"))
    spread = float(expected.float().std())
    torch.testing.assert_close(actual.float(), expected.float(), atol=0.1 * spread, rtol=0)


def test_weights_are_cast_before_they_are_quantised(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain", dtype="float32")
    asked = SCHEMES["nf4 double"]
    theirs = transformers.SmolLM3ForCausalLM.from_pretrained(
        plain, quantization_config=transformers.BitsAndBytesConfig(**asked), dtype="bfloat16"
    )
    ours = SmolLM3ForCausalLM.from_pretrained(
        plain, quantization_config=BitsAndBytesConfig(**asked), torch_dtype=torch.bfloat16
    )
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.dtype == torch.bfloat16


def test_float_weights_quantised_in_each_pass_equal_and_save_plain(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain")
    asked = {"load_in_8bit": True, "llm_int8_has_fp16_weight": True}
    theirs = transformers.SmolLM3ForCausalLM.from_pretrained(
        plain, quantization_config=transformers.BitsAndBytesConfig(**asked)
    )
    ours = SmolLM3ForCausalLM.from_pretrained(plain, quantization_config=BitsAndBytesConfig(**asked))
    assert torch.equal(logits(ours), logits(theirs))
    ours.save_pretrained(tmp_path / "ours")
    assert "quantization_config" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    source = transformers.SmolLM3ForCausalLM.from_pretrained(plain)
    assert torch.equal(
        logits(transformers.SmolLM3ForCausalLM.from_pretrained(tmp_path / "ours")), logits(source)
    )


def test_training_through_codes_gives_their_gradients(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain", dtype="float32")
    for asked in (SCHEMES["nf4 double"], SCHEMES["int8"]):
        theirs = transformers.SmolLM3ForCausalLM.from_pretrained(
            plain, quantization_config=transformers.BitsAndBytesConfig(**asked)
        ).train()
        ours = SmolLM3ForCausalLM.from_pretrained(
            plain, quantization_config=BitsAndBytesConfig(**asked)
        ).train()
        ids = torch.randint(2, 96, (2, 9))
        for model in (theirs, ours):
            model(ids, labels=ids, use_cache=False).loss.backward()
        expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
        actual = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
        assert sorted(actual) == sorted(expected)
        assert any("layernorm" in name for name in actual)
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-4)


def test_shards_may_part_codes_from_their_scales(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain")
    asked = SCHEMES["nf4 double"]
    ours = SmolLM3ForCausalLM.from_pretrained(plain, quantization_config=BitsAndBytesConfig(**asked))
    ours.save_pretrained(tmp_path / "ours", max_shard_size="9KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 5
    expected = logits(ours)
    assert torch.equal(logits(SmolLM3ForCausalLM.from_pretrained(tmp_path / "ours")), expected)
    assert torch.equal(logits(transformers.SmolLM3ForCausalLM.from_pretrained(tmp_path / "ours")), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_on_the_gpu_are_those_of_transformers(scheme: str, tmp_path: Path) -> None:
    assert torch.cuda.is_available(), "this test needs a CUDA device"
    plain = write_checkpoint(tmp_path / "plain")
    asked = {**SCHEMES[scheme], "bnb_4bit_compute_dtype": "bfloat16"}
    theirs = transformers.SmolLM3ForCausalLM.from_pretrained(
        plain, quantization_config=transformers.BitsAndBytesConfig(**asked), device_map="cuda"
    )
    ours = SmolLM3ForCausalLM.from_pretrained(
        plain, quantization_config=BitsAndBytesConfig(**asked), device_map="cuda"
    )
    ids = torch.arange(2, 22, device="cuda")[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
        ours.save_pretrained(tmp_path / "ours")
        here = SmolLM3ForCausalLM.from_pretrained(tmp_path / "ours")
        there = SmolLM3ForCausalLM.from_pretrained(tmp_path / "ours", device_map="cuda")
        assert torch.equal(there(ids).logits, theirs(ids).logits)
        torch.testing.assert_close(here(ids.cpu()).logits, theirs(ids).logits.cpu(), atol=0.2, rtol=0.1)
