"""Packed models: weights, logits, memory, gradients, files there and back, and what is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from torch import nn

from smollm3 import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PackedConfig,
    SmolLM3ForCausalLM,
    SmolLM3ForSequenceClassification,
    SmolLM3Model,
)
from smollm3.errors import CheckpointError, ConfigError, DeviceError, MissingDependencyError, ParameterError
from smollm3.model.native_runner import refusal
from smollm3.native.library import NativeStatus
from smollm3.native.quantize import ALIGNMENT, layout_of, quantize
from smollm3.quantization.memory import memory_report
from smollm3.quantization.packed import PackedEmbedding, PackedLinear
from smollm3.quantization.quantizer import dequantize_, quantizer_for

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "initializer_range": 0.09,
}
IDS = torch.tensor([[5, 9, 11, 40, 7, 3, 22, 8, 17, 31]])
CONFIGS: dict[str, PackedConfig] = {
    "int4": PackedConfig("int4"),
    "int4-g32-min": PackedConfig("int4", 32, symmetric=False),
    "int8": PackedConfig("int8"),
    "nf4-nf4": PackedConfig("nf4", head="nf4"),
    "int4-plain-head": PackedConfig("int4", head=None),
}
ERROR = {"int4": 0.15, "int4-g32-min": 0.1, "int8": 0.01, "nf4-nf4": 0.12, "int4-plain-head": 0.15}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 checkpoint with a tied head and biases."""
    path = tmp_path_factory.mktemp("plain")
    model = tiny_model(SmolLM3ForCausalLM, attention_bias=True, **SIZES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0, 0.1)
    model.to(torch.bfloat16).save_pretrained(path)
    return path


def load(path: Path, config: Any = None, **how: Any) -> SmolLM3ForCausalLM:
    return SmolLM3ForCausalLM.from_pretrained(path, quantization_config=config, **how)


def edit(path: Path, **fields: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits.float()
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_each_layer_holds_what_the_quantiser_gives_for_its_weight(folder: Path, name: str) -> None:
    config = CONFIGS[name]
    plain, model = dict(load(folder).named_modules()), load(folder, config)
    packed = {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear | PackedEmbedding)}
    heads = {"model.embed_tokens", "lm_head"}
    assert set(packed) == {
        n
        for n, m in plain.items()
        if isinstance(m, nn.Linear | nn.Embedding) and (n not in heads or config.head is not None)
    }
    for n, module in packed.items():
        scheme = config.head if n in heads else config.scheme
        assert scheme is not None
        layout = layout_of(scheme, config.group_size, config.symmetric or scheme != "int4")
        weight = plain[n].weight.detach()
        expected = quantize(weight.float().numpy(), layout)
        assert np.array_equal(module.matrix.data, expected.data)
        error = (module.dequantize() - weight).norm() / weight.norm()
        assert float(error) < (0.01 if scheme == "int8" else ERROR[name])
        if isinstance(module, PackedLinear) and n != "lm_head":
            bias = plain[n].bias
            assert (bias is None) == (module.bias is None)
            if module.bias is not None:
                assert torch.equal(module.bias, bias)


@pytest.mark.parametrize("name", CONFIGS)
def test_native_and_torch_agree_with_the_weights_that_the_codes_stand_for(folder: Path, name: str) -> None:
    model = load(folder, CONFIGS[name])
    assert refusal(model) is None
    through_layers = logits(model)
    scores = model.generate(
        IDS, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    plain = copy.deepcopy(model)
    dequantize_(plain, torch.float32)
    assert not plain.is_quantized
    expected = logits(plain.float())
    for got in (through_layers[0, -1], scores.logits[0][0].float()):  # type: ignore[union-attr, index]
        assert float((got - expected[0, -1]).norm() / expected[0, -1].norm()) < 0.05


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_again_it_is_the_same_model_in_the_files_pages(
    folder: Path, tmp_path: Path, name: str
) -> None:
    model = load(folder, CONFIGS[name])
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored == CONFIGS[name].to_dict()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.quantizer is not None
    assert again.quantizer.config == CONFIGS[name]  # type: ignore[attr-defined]
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor), key
        assert after[key].dtype == tensor.dtype
    for module in again.modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            assert module.matrix.data.ctypes.data % ALIGNMENT == 0
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path)  # over the file that it maps
    assert torch.equal(logits(again), logits(model))


def test_a_file_that_is_not_aligned_loads_too(folder: Path, tmp_path: Path) -> None:
    model = load(folder, "int4")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({"a_first_one": torch.zeros(3, dtype=torch.uint8)} | tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a_first_one"):
        load(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", {"padding": "x" * 8})
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_memory_shrinks_and_the_report_says_so(folder: Path) -> None:
    plain, model = load(folder), load(folder, "int4")
    assert model.num_parameters() == plain.num_parameters()
    report, before = memory_report(model), memory_report(plain)
    assert report.before == before.total
    assert report.total == model.get_memory_footprint()
    body = sum(
        m.weight.numel() for n, m in plain.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"
    )
    embedding = plain.model.embed_tokens.weight.numel()
    assert report.quantized == body // 2 + embedding
    groups = (body + embedding) // 64
    assert groups * 2 <= report.scales <= groups * 2.6  # a panel's scales fill whole lines
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_gradients_pass_through_packed_layers_and_stop_at_them(folder: Path) -> None:
    model = load(folder, PackedConfig("int8", head=None))
    plain = copy.deepcopy(model)
    dequantize_(plain, torch.float32)
    layer, twin = (
        model.get_submodule("model.layers.0.mlp.down_proj"),
        plain.get_submodule("model.layers.0.mlp.down_proj"),
    )
    x = torch.randn(2, 5, 192)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(a).sum().backward()
    twin(b).sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-4)  # type: ignore[arg-type]
    assert layer.weight.grad is None


def test_models_with_and_without_other_heads(folder: Path) -> None:
    base = SmolLM3Model.from_pretrained(folder, quantization_config="int8")
    classifier = SmolLM3ForSequenceClassification.from_pretrained(folder, quantization_config="int8")
    assert isinstance(base.embed_tokens, PackedEmbedding)
    assert type(classifier.score) is nn.Linear
    plain = SmolLM3Model.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        got, expected = base(IDS).last_hidden_state.float(), plain(IDS).last_hidden_state
    assert float((got - expected).norm() / expected.norm()) < 0.06


def test_an_untied_head_has_panels_of_its_own(tmp_path: Path) -> None:
    tiny_model(SmolLM3ForCausalLM, tie_word_embeddings=False, **SIZES).save_pretrained(tmp_path)
    model = load(tmp_path, "nf4")
    assert model.dtype == torch.float32
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "packed")
    assert torch.equal(logits(load(tmp_path / "packed")), logits(model))


def test_float32_weights_are_not_rounded_twice(tmp_path: Path) -> None:
    plain = tiny_model(SmolLM3ForCausalLM, **SIZES)
    plain.save_pretrained(tmp_path)
    model = load(tmp_path, "int8", dtype="bfloat16")
    weight = plain.get_parameter("model.layers.0.mlp.up_proj.weight").detach().numpy()
    expected = quantize(weight, layout_of("int8", 64))
    packed = model.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(packed, PackedLinear)
    assert np.array_equal(packed.matrix.data, expected.data)
    assert model.dtype == torch.bfloat16


# What is refused


def test_groups_that_do_not_fit_name_those_that_do(tmp_path: Path) -> None:
    tiny_model(SmolLM3ForCausalLM, hidden_size=96, intermediate_size=128).save_pretrained(tmp_path)
    with pytest.raises(
        ParameterError, match=r"group_size=64 does not divide the 96 columns of .*group_size=32"
    ):
        load(tmp_path, "int4")
    assert logits(load(tmp_path, PackedConfig("int4", 32))).isfinite().all()


def test_packed_weights_stay_on_the_cpu_and_in_their_codes(folder: Path) -> None:
    quantizer, plain = quantizer_for("int4"), tiny_model(SmolLM3ForCausalLM, **SIZES)
    assert quantizer is not None
    quantizer.prepare_(plain)
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(DeviceError, match="run on the CPU, not on meta"):
        quantizer.load_(plain, name, plain.get_parameter(name), torch.device("meta"), torch.float32)
    model = load(folder, "int4")
    with pytest.raises(DeviceError, match="cannot move to meta"):
        model.to("meta")
    with pytest.raises(ParameterError, match="a quantised model cannot be cast"):
        model.float()
    assert logits(model.to("cpu")).isfinite().all()


def test_without_the_native_library_one_line_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = NativeStatus(False, "it was not built: install a C++17 compiler (g++ or clang++)")
    monkeypatch.setattr("smollm3.quantization.packed_quantizer.native_status", lambda: absent)
    with pytest.raises(MissingDependencyError) as caught:
        load(folder, "int4")
    assert str(caught.value) == f"quantization_config='int4' needs the native library: {absent.reason}"


def test_weights_that_are_no_numbers_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.v_proj.weight")[3, 5] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.v_proj\.weight' holds NaN"):
        load(tmp_path, "int4")


@pytest.mark.parametrize("damage", ["narrow", "short", "floats", "bias"])
def test_stored_panels_of_the_wrong_size_are_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    load(folder, "int4").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.0.self_attn.q_proj.{'bias' if damage == 'bias' else 'weight'}"
    damages: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "narrow": lambda x: x[:, :-64].contiguous(),
        "short": lambda x: x[:-1].contiguous(),
        "floats": lambda x: torch.zeros(128, 128),
        "bias": lambda x: x[:-1].contiguous(),
    }
    tensors[name] = damages[damage](tensors[name])
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_that_lies_about_the_panels_is_refused(folder: Path, tmp_path: Path) -> None:
    load(folder, "int4").save_pretrained(tmp_path)
    edit(tmp_path, quantization_config=PackedConfig("int8").to_dict())
    with pytest.raises(CheckpointError, match="one of the two is damaged"):
        load(tmp_path)
    edit(tmp_path, quantization_config={"quant_method": "smollm3", "scheme": "int5"})
    with pytest.raises(ConfigError, match="scheme='int5'"):
        load(tmp_path)
    edit(tmp_path, quantization_config=PackedConfig("int4").to_dict())
    with pytest.raises(ParameterError, match="quantised already"):
        load(tmp_path, BitsAndBytesConfig(load_in_4bit=True))
