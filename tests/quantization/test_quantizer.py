"""Which quantiser a config leads to, what is refused, and how a quantised model speaks of itself."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from smollm3 import BitsAndBytesConfig, SmolLM3ForCausalLM, SmolLM3ForSequenceClassification
from smollm3.errors import CheckpointError, ConfigError, DeviceError, MissingDependencyError, ParameterError
from smollm3.model.heads import SmolLM3ForQuestionAnswering, SmolLM3ForTokenClassification
from smollm3.quantization import bitsandbytes_library
from smollm3.quantization.bitsandbytes import BitsAndBytesQuantizer
from smollm3.quantization.bitsandbytes_linear import Linear4bit, Linear8bit
from smollm3.quantization.memory import memory_report
from smollm3.quantization.quantizer import choose_quantizer, dequantize_, quantizer_for, refuse_cast

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")
INT8 = BitsAndBytesConfig(load_in_8bit=True)
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "no_rope_layers": [1, 0]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny bfloat16 checkpoint with one layer without positions."""
    tiny_model(SmolLM3ForCausalLM, **SIZES).to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def test_configs_lead_to_their_quantiser() -> None:
    assert quantizer_for(None) is None
    for config in (NF4, NF4.to_dict(), {"load_in_8bit": True}):
        assert isinstance(quantizer_for(config), BitsAndBytesQuantizer)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (BitsAndBytesConfig(), ParameterError, "load_in_4bit=True or load_in_8bit=True"),
        ({"quant_method": "gptq", "bits": 4}, ConfigError, "'gptq'"),
        ({"load_in_4bits": True}, ParameterError, "did you mean load_in_4bit"),
        ("nf5", ParameterError, "give one of int4, int6, int8, nf4"),
        (4, ParameterError, "is a int: give a BitsAndBytesConfig"),
        (
            BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True),
            ParameterError,
            "leave it out",
        ),
    ],
    ids=str,
)
def test_other_configs_are_refused_in_one_line(config: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        quantizer_for(config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_stored_decides_and_what_runs_can_be_asked_for() -> None:
    stored = NF4.to_dict()
    asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    chosen: Any = choose_quantizer(stored, asked)
    assert chosen.stored
    assert chosen.config.bnb_4bit_compute_dtype is torch.float32
    assert not chosen.config.bnb_4bit_use_double_quant
    plain: Any = choose_quantizer(stored, None)
    assert plain.config == NF4
    fresh: Any = choose_quantizer(None, INT8.to_dict())
    assert not fresh.stored
    assert choose_quantizer(None, None) is None
    for other in (INT8, BitsAndBytesConfig(load_in_4bit=True), {"load_in_8bit": True}):
        with pytest.raises(ParameterError, match="stored in nf4 and cannot be loaded in"):
            choose_quantizer(stored, other)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    bitsandbytes_library.bitsandbytes.cache_clear()
    try:
        with pytest.raises(MissingDependencyError) as caught:
            quantizer_for(NF4)
    finally:
        bitsandbytes_library.bitsandbytes.cache_clear()
    assert "pip install 'smollm3[bitsandbytes]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ImportError)


def test_importing_the_package_is_quiet_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    """With a `kernels` package in reach, bitsandbytes would download compiled code from the hub."""
    (tmp_path / "kernels.py").write_text(
        "def get_kernel(*_, **__):\n    raise SystemExit('asked the hub for code')\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import smollm3.quantization.bitsandbytes\n"
        "assert 'bitsandbytes' not in sys.modules, 'imported before it is needed'\n"
        "from smollm3 import BitsAndBytesConfig\n"
        "from smollm3.quantization.quantizer import quantizer_for\n"
        "quantizer_for(BitsAndBytesConfig(load_in_4bit=True))\n"
        "assert 'bitsandbytes' in sys.modules and 'kernels' not in sys.modules\n"
        "import kernels\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_device_without_kernels_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"no kernels for vulkan: choose among .*cpu"):
        bitsandbytes_library.check_device(torch.device("vulkan"))


@pytest.mark.parametrize("config", [NF4, INT8], ids=["nf4", "int8"])
def test_a_model_is_quantised_as_it_loads(folder: Path, config: BitsAndBytesConfig) -> None:
    plain = SmolLM3ForCausalLM.from_pretrained(folder)
    model = SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=config)
    four = config.load_in_4bit
    kind = Linear4bit if four else Linear8bit
    coded = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert coded == {name for name, m in plain.named_modules() if type(m) is nn.Linear and name != "lm_head"}
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.bfloat16
    assert model.config.quantization_config == config.to_dict()
    assert (model.is_quantized, model.is_loaded_in_4bit, model.is_loaded_in_8bit) == (True, four, not four)
    assert model.num_parameters() == plain.num_parameters()
    assert model.get_memory_footprint() < plain.get_memory_footprint()
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        left, right = model(ids).logits.float(), plain(ids).logits.float()
    assert torch.nn.functional.cosine_similarity(left, right, dim=-1).median() > (0.8 if four else 0.98)


@pytest.mark.parametrize("config", [NF4, INT8], ids=["nf4", "int8"])
def test_generation_runs_through_a_quantised_model(folder: Path, config: BitsAndBytesConfig) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=config)
    ids = torch.tensor([[5, 6, 7, 8]])
    out = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    expected = ids
    with torch.no_grad():
        for _ in range(6):
            expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(out, expected)


def test_memory_is_reported_by_kind(folder: Path) -> None:
    plain = SmolLM3ForCausalLM.from_pretrained(folder)
    model = SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=NF4)
    num_coded = sum(
        m.weight.numel() for n, m in plain.named_modules() if type(m) is nn.Linear and n != "lm_head"
    )
    num_layers = sum(isinstance(m, Linear4bit) for m in model.modules())
    report = memory_report(model)
    assert report.quantized == num_coded // 2
    assert report.scales == 4 * num_coded // 64 + 16 * 4 * num_layers
    assert report.total == model.get_memory_footprint()
    assert report.before == plain.get_memory_footprint() == memory_report(plain).total
    assert memory_report(plain).quantized == memory_report(plain).scales == 0
    assert str(report).endswith(" before")
    assert "MB of quantised weights" in str(report) or "kB of quantised weights" in str(report)
    in_float32 = memory_report(model, torch.float32)
    assert in_float32.before - report.before == 2 * num_coded


def test_a_quantised_model_refuses_to_be_cast(folder: Path) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=NF4)
    casts: list[Any] = [
        model.half,
        model.float,
        model.bfloat16,
        model.double,
        lambda: model.to(torch.float16),
    ]
    casts.append(lambda: model.to("cpu", torch.float32))
    for cast in casts:
        with pytest.raises(ParameterError, match="a quantised model cannot be cast to"):
            cast()
    assert model.to("cpu") is model
    assert model.dtype == torch.bfloat16
    plain = SmolLM3ForCausalLM.from_pretrained(folder)
    assert plain.half().dtype == torch.float16
    assert plain.to(torch.float32).dtype == torch.float32
    refuse_cast(plain, torch.float16)


@pytest.mark.parametrize("config", [NF4, INT8], ids=["nf4", "int8"])
def test_dequantised_models_are_ordinary_ones(
    folder: Path, config: BitsAndBytesConfig, tmp_path: Path
) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=config)
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        before = model(ids).logits.float()
    dequantize_(model, torch.float32)
    assert model.config.quantization_config is None
    assert not model.is_quantized
    model.float()
    with torch.no_grad():
        after = model(ids).logits
    assert torch.nn.functional.cosine_similarity(before, after, dim=-1).median() > 0.99
    model.save_pretrained(tmp_path / "plain")
    again = SmolLM3ForCausalLM.from_pretrained(tmp_path / "plain")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, after)


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (SmolLM3ForSequenceClassification, "score"),
        (SmolLM3ForTokenClassification, "score"),
        (SmolLM3ForQuestionAnswering, "qa_outputs"),
    ],
)
def test_heads_stay_plain(kind: Any, head: str, folder: Path) -> None:
    model = kind.from_pretrained(
        folder, quantization_config=NF4, **({} if head == "qa_outputs" else {"num_labels": 3})
    )
    assert type(model.get_submodule(head)) is nn.Linear
    assert sum(isinstance(module, Linear4bit) for module in model.modules()) == 14
    biased = model.get_submodule(head).bias is not None
    assert model.config.quantization_config["llm_int8_skip_modules"] == ([head] if biased else None)


def test_modules_can_be_skipped_by_name(folder: Path) -> None:
    def coded(*skipped: str) -> set[str]:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skipped))
        model = SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=config)
        assert "lm_head" in model.config.quantization_config["llm_int8_skip_modules"], "it is tied"
        return {name for name, module in model.named_modules() if isinstance(module, Linear8bit)}

    everything = coded("lm_head")
    assert coded() == everything
    assert coded("model.layers.1") == {name for name in everything if ".1." not in name}
    assert coded("down_proj", "v_proj") == {n for n in everything if not n.endswith(("down_proj", "v_proj"))}
    assert coded(r"model\.layers\.\d+\.mlp") == {name for name in everything if ".mlp." not in name}
    with pytest.raises(ParameterError, match="no list of name patterns"):
        coded("(")


def test_an_untied_head_is_quantised_when_the_list_leaves_it_out(tmp_path: Path) -> None:
    tiny_model(SmolLM3ForCausalLM, tie_word_embeddings=False, **SIZES).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["q_proj"])
    model = SmolLM3ForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert isinstance(model.lm_head, Linear8bit)
    by_default = SmolLM3ForCausalLM.from_pretrained(tmp_path, quantization_config=INT8)
    assert type(by_default.lm_head) is nn.Linear


def test_storage_that_codes_do_not_fill_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 6, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 3}
    tiny_model(SmolLM3ForCausalLM, **sizes).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage="float32")
    with pytest.raises(ParameterError, match=r"q_proj has 18 bytes of codes.*choose uint8"):
        SmolLM3ForCausalLM.from_pretrained(tmp_path, quantization_config=config)


def test_an_incomplete_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=NF4).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for missing in ("model.layers.0.mlp.up_proj.weight.absmax", "model.layers.1.self_attn.q_proj.weight"):
        save_file(
            {name: tensor for name, tensor in tensors.items() if name != missing}, path, {"format": "pt"}
        )
        with pytest.raises(CheckpointError, match=r"lacks (weight\.absmax|1 of the .*q_proj\.weight)"):
            SmolLM3ForCausalLM.from_pretrained(tmp_path)


def test_products_in_int8_do_not_fill_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(folder, quantization_config=INT8)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        model(torch.tensor([[4, 5, 6]]))
    assert not caplog.records
