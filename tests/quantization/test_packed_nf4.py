"""bitsandbytes' NF4 on the native engine: the same codes, close logits, and nothing of the layer is lost."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from smollm3 import BitsAndBytesConfig, SmolLM3ForCausalLM
from smollm3.model.native_runner import refusal
from smollm3.native.quantize import NF4_UNIT, layout_of
from smollm3.native.repack import pack_nibbles, unpack_nibbles
from smollm3.quantization.bitsandbytes_linear import Linear4bit

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "initializer_range": 0.09,
}
IDS = torch.tensor([[5, 9, 11, 40, 7, 3, 22, 8, 17, 31]])


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    tiny_model(SmolLM3ForCausalLM, attention_bias=True, **SIZES).to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def load(folder: Any, **changes: Any) -> SmolLM3ForCausalLM:
    fields: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    config = BitsAndBytesConfig(**(fields | changes))
    return SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=config)


def native_logits(model: SmolLM3ForCausalLM) -> torch.Tensor:
    output: Any = model.generate(
        IDS, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return torch.as_tensor(output.logits[0][0]).float()


@torch.no_grad()
def torch_logits(model: SmolLM3ForCausalLM) -> torch.Tensor:
    return torch.as_tensor(model(IDS).logits[0, -1]).float()


@pytest.mark.parametrize("rows", [1, 16, 37])
def test_codes_come_back_as_they_went_in(rows: int) -> None:
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 256, (rows, 96), dtype=np.uint8)
    scales = rng.uniform(0.01, 1, (rows, 3)).astype(np.float16).astype(np.float32)
    layout = layout_of("nf4", 64)
    matrix = pack_nibbles(codes, scales, layout, threads=2)
    assert np.array_equal(unpack_nibbles(matrix), codes)
    nibbles = np.stack([codes >> 4, codes & 15], axis=-1).reshape(rows, 192)
    expected = np.array(layout.table, np.float32)[nibbles] * np.repeat(scales, 64, axis=1)
    assert np.array_equal(matrix.unpack(), expected)
    with pytest.raises(ValueError, match="scales of shape"):
        pack_nibbles(codes, scales[:, :2], layout)
    with pytest.raises(ValueError, match="do not fit"):
        pack_nibbles(codes, scales, layout_of("int8", 64))


@pytest.mark.parametrize(
    "changes", [{}, {"bnb_4bit_use_double_quant": False}, {"bnb_4bit_quant_storage": "bfloat16"}], ids=str
)
def test_the_pages_example_runs_native_and_is_still_the_same_model(
    folder: Any, changes: dict[str, Any]
) -> None:
    model = load(folder, **changes)
    assert refusal(model) is None
    weights = {name: m.dequantize().float() for name, m in model.named_modules() if isinstance(m, Linear4bit)}
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected, size = torch_logits(model), model.get_memory_footprint()
    got = native_logits(model)
    assert float((got - expected).norm() / expected.norm()) < 0.06  # int8 activations, bf16 on both sides
    assert torch.equal(native_logits(model), got)
    for name, weight in weights.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Linear4bit)
        assert layer.native_refusal() is None
        error = (torch.from_numpy(layer.native_matrix().unpack()) - weight).abs().max() / weight.abs().max()
        assert float(error) < 0.5 / NF4_UNIT + 0.004  # the table in integers, and bfloat16 in the other
        assert torch.equal(layer.dequantize().float(), weight)
    assert model.get_memory_footprint() < 1.1 * size  # no second copy
    for name, tensor in model.state_dict().items():  # as bytes: codes in bfloat16 may spell NaN
        assert torch.equal(tensor.flatten().view(torch.uint8), stored[name].flatten().view(torch.uint8)), name
    assert torch.equal(torch_logits(model), expected)


def test_training_and_saving_after_native_use(folder: Any, tmp_path: Any) -> None:
    model = load(folder)
    expected = torch_logits(model)
    native_logits(model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(torch_logits(SmolLM3ForCausalLM.from_pretrained(tmp_path / "saved")), expected)
    native_logits(model)
    embeds = model.model.embed_tokens(IDS).detach().requires_grad_()
    model(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.abs().sum() > 0


def test_what_is_not_nf4_in_whole_blocks_stays_with_torch(folder: Any, tmp_path: Any) -> None:
    assert "is a Linear4bit and not NF4" in str(refusal(load(folder, bnb_4bit_quant_type="fp4")))
    narrow = tiny_model(SmolLM3ForCausalLM, hidden_size=96, intermediate_size=128, head_dim=16).to(
        torch.bfloat16
    )
    narrow.save_pretrained(tmp_path / "narrow")
    model = load(tmp_path / "narrow")
    assert "96 columns in blocks of 64" in str(refusal(model))
    answer = model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert isinstance(answer, torch.Tensor)
    assert answer.shape == (1, 13)
