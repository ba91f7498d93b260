"""The head of an NF4 model on the native engine: eight bits there, untouched in the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from smollm3 import BitsAndBytesConfig, SmolLM3ForCausalLM
from smollm3.engine.runner import Row
from smollm3.model.native_description import weights_of
from smollm3.model.native_runner import NativeRunner

IDS = [5, 9, 11, 40, 7, 3, 22, 8, 17, 31]
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def load(path: Path, *, tied: bool) -> SmolLM3ForCausalLM:
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "initializer_range": 0.09,
        "tie_word_embeddings": tied,
    }
    tiny_model(SmolLM3ForCausalLM, **sizes).to(torch.bfloat16).save_pretrained(path)
    return SmolLM3ForCausalLM.from_pretrained(path, quantization_config=NF4)


def logits(model: SmolLM3ForCausalLM) -> torch.Tensor:
    runner = NativeRunner(model, max_cache_tokens=64)
    return runner.forward([Row(runner.open(16), IDS, 0)])[0].flatten().float()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_head_runs_in_eight_bits_and_its_logits_stay_close(tmp_path: Path, tied: bool) -> None:
    model = load(tmp_path, tied=tied)
    weights = weights_of(model)
    assert (weights.head.layout.bits, weights.embedding.layout.bits) == (8, 16)
    head = model.lm_head.weight.detach().float()
    rounded = torch.from_numpy(weights.head.unpack())
    assert float((rounded - head).norm() / head.norm()) < 0.006
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0, -1].float()
    error = (logits(model) - expected).norm() / expected.norm()
    assert float(error) < 0.06  # int8 activations in every layer


def test_the_copy_is_made_once_and_again_after_a_change(tmp_path: Path) -> None:
    model = load(tmp_path, tied=True)
    first = weights_of(model).head
    assert weights_of(model).head is first
    before = logits(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert weights_of(model).head is not first
    assert not torch.allclose(logits(model), before, rtol=0.2)
    model.lm_head.weight.data[7].zero_()  # torch does not count this one
    assert float(logits(model)[7]) == 0.0


def test_what_is_stored_is_the_head_as_it_came(tmp_path: Path) -> None:
    model = load(tmp_path / "plain", tied=False)
    came = model.lm_head.weight.detach().clone()
    logits(model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(SmolLM3ForCausalLM.from_pretrained(tmp_path / "saved").lm_head.weight, came)


def test_a_head_that_is_no_number_shows(tmp_path: Path) -> None:
    model = load(tmp_path, tied=False)
    with torch.no_grad():
        model.lm_head.weight[3, 7] = torch.nan
    found = logits(model)
    assert found[3].isnan()
    assert int(found.isnan().sum()) == 1
