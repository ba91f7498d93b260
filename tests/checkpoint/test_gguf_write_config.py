"""A config as GGUF metadata: read back it is the same, and what llama.cpp would run otherwise is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_config

from smollm3.checkpoint.gguf_config import config_dict
from smollm3.checkpoint.gguf_header import GGUFHeader, GGUFTensor
from smollm3.checkpoint.gguf_write_config import architecture_for, config_metadata, rope_factors
from smollm3.errors import CheckpointError
from smollm3.model.config import SmolLM3Config
from smollm3.ops.rotary import inv_freq

LLAMA = [1] * 8


def read_back(config: SmolLM3Config) -> SmolLM3Config:
    """What our reader makes of the metadata."""
    data = config.to_dict()
    architecture = architecture_for(data)
    metadata = {"general.architecture": architecture, **config_metadata(data, architecture)}
    for key, value in metadata.items():
        if isinstance(value, float):
            metadata[key] = float(np.float32(value))  # what the file holds
    tensors: dict[str, GGUFTensor] = dict.fromkeys("abcdefgh")  # type: ignore[arg-type]
    header = GGUFHeader(Path("x.gguf"), metadata, tensors)
    names = set() if config.tie_word_embeddings else {"lm_head.weight"}
    return SmolLM3Config.from_dict(config_dict(header, names, config.vocab_size, rope_factors(data)))


CONFIGS: dict[str, dict[str, Any]] = {
    "smollm3": {},
    "interval of four": {"no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0]},
    "llama": {"no_rope_layers": LLAMA},
    "swish is silu": {"no_rope_layers": LLAMA, "hidden_act": "swish"},
    "wide heads": {"head_dim": 20},
    "untied": {"tie_word_embeddings": False},
    "eps and theta": {"rms_norm_eps": 1e-5, "rope_theta": 5_000_000.0},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}},
    "yarn with its own numbers": {
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32,
            "beta_slow": 1.0, "truncate": True,
        }
    },
    "yarn with an attention factor": {
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
            "attention_factor": 0.75,
        }
    },
    "llama3": {
        "no_rope_layers": LLAMA,
        "rope_theta": 500_000.0,
        "head_dim": 64,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip


def frequencies(config: SmolLM3Config) -> tuple[torch.Tensor, float]:
    assert config.rope_parameters is not None
    assert config.head_dim is not None
    return inv_freq(
        config.rope_parameters, config.head_dim, max_position_embeddings=config.max_position_embeddings
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_read_back_rotates_and_measures_the_same(name: str) -> None:
    config = tiny_config(num_hidden_layers=8, **CONFIGS[name])
    again = read_back(config)
    for field in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "no_rope_layers",
        "tie_word_embeddings", "rope_theta",
    ):  # fmt: skip
        assert getattr(again, field) == getattr(config, field), field
    (expected, scaling), (found, found_scaling) = frequencies(config), frequencies(again)
    assert torch.allclose(found, expected, rtol=1e-6)
    assert found_scaling == pytest.approx(scaling, rel=1e-6)


@pytest.mark.parametrize(
    ("layers", "architecture"),
    [([1, 1, 1, 0] * 2, "smollm3"), ([1] * 8, "llama"), ([1, 1, 1, 0, 1], "smollm3"), ([1, 1, 1], "llama")],
    ids=str,
)
def test_the_architecture_follows_the_layers(layers: list[int], architecture: str) -> None:
    config = tiny_config(num_hidden_layers=len(layers), no_rope_layers=layers)
    assert architecture_for(config.to_dict()) == architecture
    assert all(key.startswith(f"{architecture}.") for key in config_metadata(config.to_dict(), architecture))


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "every second": ({"no_rope_layer_interval": 2}, "out of the layers 1, 3, 5, 7, and GGUF"),
    "none rotates": ({"no_rope_layers": [0] * 8}, "out of the layers 0, 1, 2, 3, 4, 5, ..., and GGUF"),
    "a missing gap": ({"no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 1]}, "out of the layers 3, and"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "window": ({"use_sliding_window": True, "sliding_window": 16}, "sliding_attention"),
    "dynamic": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
    "bias with NoPE": ({"attention_bias": True}, "attention_bias with layers that do not rotate"),
    "mlp bias with NoPE": ({"mlp_bias": True}, "mlp_bias with layers that do not rotate"),
    "llama3 with NoPE": (
        {"rope_scaling": CONFIGS["llama3"]["rope_scaling"]},
        "'llama3' with layers that do not rotate",
    ),
    "beta_fast": ({"rope_scaling": {**YARN, "beta_fast": 16}}, "YaRN's beta_fast is 16"),
    "beta_slow": ({"rope_scaling": {**YARN, "beta_slow": 2}}, "YaRN's beta_slow is 2"),
    "truncate": ({"rope_scaling": {**YARN, "truncate": False}}, "YaRN's truncate is False"),
    "mscale": ({"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}, "YaRN's mscale is 1.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_run_otherwise_is_refused_in_a_line(case: str) -> None:
    changes, message = REFUSED[case]
    config = tiny_config(**{"num_hidden_layers": 8, **changes}).to_dict()
    with pytest.raises(CheckpointError) as caught:
        architecture_for(config)
    assert message in str(caught.value)
    assert "llama.cpp cannot run that" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_beyond_the_last_do_not_count() -> None:
    config = tiny_config(num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0, 0, 0, 0])
    assert architecture_for(config.to_dict()) == "smollm3"


def test_the_divisors_of_llama3_are_those_of_its_paper() -> None:
    config = tiny_config(num_hidden_layers=8, **CONFIGS["llama3"])
    factors = rope_factors(config.to_dict())
    assert factors is not None
    plain = 1.0 / 500_000.0 ** (np.arange(0, 64, 2) / 64)
    stretched, _ = frequencies(config)
    assert factors.dtype == np.float32
    assert np.allclose(plain / factors, stretched.numpy(), rtol=1e-5)
    assert factors.max() == pytest.approx(8.0)
    assert factors.min() == 1.0
    assert rope_factors(tiny_config().to_dict()) is None
