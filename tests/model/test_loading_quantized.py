"""Quantised models through from_pretrained and save_pretrained: heads, shards, and files that do not fit."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from torch import Tensor

from smollm3.errors import CheckpointError, ParameterError
from smollm3.model.heads import SmolLM3ForQuestionAnswering, SmolLM3ForSequenceClassification
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.quantization.config import BitsAndBytesConfig

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DOUBLE = {**NF4, "bnb_4bit_use_double_quant": True}
INT8 = {"load_in_8bit": True}
SCHEMES = pytest.mark.parametrize("scheme", [NF4, DOUBLE, INT8], ids=["nf4", "double", "int8"])
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "no_rope_layers": [1, 0]}
IDS = torch.arange(4, 16)[None]


def quantized(scheme: dict[str, Any]) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(**scheme)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A float32 language model."""
    tiny_model(SmolLM3ForCausalLM, **SIZES).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@SCHEMES
@pytest.mark.parametrize("shard", ["5GB", "5KB"])
def test_saved_codes_come_back_from_any_shards(
    scheme: dict[str, Any], shard: str, plain: Path, tmp_path: Path
) -> None:
    """5 KB puts the codes of a layer and their scales into different files."""
    model = SmolLM3ForCausalLM.from_pretrained(plain, quantization_config=quantized(scheme))
    model.save_pretrained(tmp_path / "codes", max_shard_size=shard)
    loaded = SmolLM3ForCausalLM.from_pretrained(tmp_path / "codes")
    assert loaded.config.quantization_config == model.config.quantization_config
    left, right = loaded.state_dict(), model.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    # into the folder that its codes are mapped from
    loaded.save_pretrained(tmp_path / "codes")
    again = SmolLM3ForCausalLM.from_pretrained(tmp_path / "codes")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@SCHEMES
def test_a_new_head_over_a_quantised_model(
    scheme: dict[str, Any], plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SmolLM3ForCausalLM.from_pretrained(plain, quantization_config=quantized(scheme)).save_pretrained(
        tmp_path / "codes"
    )
    for folder, asked in ((plain, quantized(scheme)), (tmp_path / "codes", None)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="smollm3"):
            model = SmolLM3ForQuestionAnswering.from_pretrained(folder, quantization_config=asked)
        assert [record.getMessage() for record in caplog.records if record.name == "smollm3"] == [
            "SmolLM3ForQuestionAnswering: newly initialised, train before use: "
            "qa_outputs.weight, qa_outputs.bias"
        ]
        assert type(model.qa_outputs) is torch.nn.Linear
        assert not isinstance(model.transformer.layers[0].mlp.up_proj, torch.nn.Linear)
        assert torch.isfinite(model(IDS).start_logits).all()


def test_a_new_head_that_is_to_be_quantised_itself(plain: Path) -> None:
    config = BitsAndBytesConfig(**NF4, llm_int8_skip_modules=["lm_head"])
    model = SmolLM3ForSequenceClassification.from_pretrained(plain, quantization_config=config, num_labels=4)
    assert type(model.score).__name__ == "Linear4bit"
    weight = model.score.dequantize()
    assert weight.shape == (4, 64)
    assert 0.2 < weight.std() < 0.6
    assert model(IDS).logits.shape == (1, 4)


@SCHEMES
def test_a_head_of_another_size_starts_anew(scheme: dict[str, Any], tmp_path: Path) -> None:
    tiny_model(SmolLM3ForSequenceClassification, num_labels=5, **SIZES).save_pretrained(tmp_path / "plain")
    model = SmolLM3ForSequenceClassification.from_pretrained(
        tmp_path / "plain", quantization_config=quantized(scheme)
    )
    model.save_pretrained(tmp_path / "codes")
    for folder, asked in ((tmp_path / "plain", quantized(scheme)), (tmp_path / "codes", None)):
        load: Any = SmolLM3ForSequenceClassification.from_pretrained
        with pytest.raises(CheckpointError, match=r"'score.weight' has the shape \(5, 64\)"):
            load(folder, quantization_config=asked, num_labels=3)
        fresh = load(folder, quantization_config=asked, num_labels=3, ignore_mismatched_sizes=True)
        assert fresh(IDS).logits.shape == (1, 3)


def _unknown(stored: dict[str, Tensor]) -> None:
    stored["model.layers.0.mlp.up_proj.zeros"] = torch.ones(4)


def _foreign(stored: dict[str, Tensor]) -> None:
    stored["model.layers.0.mlp.extra_proj.weight.absmax"] = torch.ones(4)


def _no_scales(stored: dict[str, Tensor]) -> None:
    for name in list(stored):
        if name.startswith("model.layers.1.self_attn.q_proj.weight.") or name.endswith(
            "1.self_attn.q_proj.SCB"
        ):
            del stored[name]


def _no_codes(stored: dict[str, Tensor]) -> None:
    del stored["model.layers.1.self_attn.q_proj.weight"]


def _norm(stored: dict[str, Tensor]) -> None:
    stored["model.norm.weight"] = torch.ones(63)


def _coded_norm(stored: dict[str, Tensor]) -> None:
    stored["model.norm.weight"] = torch.ones(64, dtype=torch.uint8)


SPOILED: list[tuple[Callable[[dict[str, Tensor]], None], str]] = [
    (_unknown, "holds 'model.layers.0.mlp.up_proj.zeros', for which the model has no place"),
    (_foreign, "holds 'model.layers.0.mlp.extra_proj.weight.absmax', for which"),
    (_no_scales, r"'model.layers.1.self_attn.q_proj' lacks "),
    (_no_codes, "lacks 1 of the .* 'model.layers.1.self_attn.q_proj.weight'"),
    (_norm, r"'model.norm.weight' has the shape \(63,\)"),
    (_coded_norm, "'model.norm.weight' holds torch.uint8"),
]


@SCHEMES
@pytest.mark.parametrize(("spoil", "message"), SPOILED, ids=lambda case: getattr(case, "__name__", "says"))
def test_codes_that_do_not_fit_are_one_line(
    spoil: Callable[[dict[str, Tensor]], None],
    message: str,
    scheme: dict[str, Any],
    plain: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "codes"
    SmolLM3ForCausalLM.from_pretrained(plain, quantization_config=quantized(scheme)).save_pretrained(folder)
    stored = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    spoil(stored)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        SmolLM3ForCausalLM.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@SCHEMES
def test_a_quantised_model_keeps_its_dtype(scheme: dict[str, Any], plain: Path) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(plain, quantization_config=quantized(scheme), dtype="bfloat16")
    for cast in (
        lambda: model.to(torch.float16),
        lambda: model.to("cpu", torch.float32),
        model.half,
        model.float,
        model.bfloat16,
    ):
        with pytest.raises(ParameterError, match="a quantised model cannot be cast") as caught:
            cast()
        assert "\n" not in str(caught.value)
    assert model.to("cpu") is model
    assert model.dtype == torch.bfloat16
    whole = SmolLM3ForCausalLM.from_pretrained(plain, dtype="bfloat16")
    assert model.num_parameters() == whole.num_parameters()
    assert model.get_memory_footprint() < 0.8 * whole.get_memory_footprint()
