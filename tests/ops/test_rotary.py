"""Frequencies against transformers and known numbers; the rotation against complex multiplication."""

import math
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from smollm3.ops.rotary import cos_sin, inv_freq, rotate

SETTINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 65536},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 1.5},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
    },
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
]


@pytest.mark.parametrize("theta", [1e4, 5e6])
@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s['rope_type']}-{len(s)}")
def test_frequencies_equal_transformers(settings: dict[str, Any], head_dim: int, theta: float) -> None:
    parameters = {**settings, "rope_theta": theta}
    config = transformers.SmolLM3Config(
        hidden_size=2 * head_dim, num_attention_heads=2, num_hidden_layers=1, rope_parameters=dict(parameters)
    )
    expected, scaling = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, None)
    ours, our_scaling = inv_freq(parameters, head_dim, max_position_embeddings=config.max_position_embeddings)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=0, rtol=1e-6)
    assert our_scaling == pytest.approx(scaling, abs=1e-12)


def test_default_frequencies_and_the_cards_yarn_are_known_numbers() -> None:
    plain, scaling = inv_freq({"rope_type": "default", "rope_theta": 5e6}, 128, max_position_embeddings=65536)
    assert scaling == 1.0
    assert plain[0] == 1.0
    assert plain[-1].item() == pytest.approx(5e6 ** (-126 / 128), rel=1e-6)
    card = {"rope_type": "yarn", "rope_theta": 5e6, "factor": 2.0, "original_max_position_embeddings": 65536}
    stretched, scaling = inv_freq(card, 128, max_position_embeddings=131072)
    assert scaling == pytest.approx(1.0693147, abs=1e-7)
    assert stretched[0] == plain[0]  # fast dimensions stay
    assert stretched[-1].item() == pytest.approx(plain[-1].item() / 2, rel=1e-6)  # slow ones are interpolated


@pytest.mark.parametrize("seq_len", [1, 64, 65, 1000])
def test_dynamic_frequencies_grow_with_the_sequence_only_beyond_the_trained_length(seq_len: int) -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = transformers.SmolLM3Config(
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=64,
        rope_parameters=dict(parameters),
    )
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, None, seq_len=torch.tensor(seq_len))
    ours, _ = inv_freq(parameters, 16, torch.tensor(seq_len), max_position_embeddings=64)
    torch.testing.assert_close(ours, expected, atol=0, rtol=1e-6)
    short, _ = inv_freq(parameters, 16, max_position_embeddings=64)
    assert torch.allclose(ours, short) == (seq_len <= 64)


def test_rotation_turns_pairs_like_complex_numbers() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    frequencies, _ = inv_freq({"rope_type": "default", "rope_theta": 100.0}, 8, max_position_embeddings=64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 5, 6, 900]])
    cos, sin = cos_sin(positions, frequencies, 1.0, torch.float32)
    assert cos.shape == (2, 1, 5, 4)
    turned_q, turned_k = rotate(q, k, cos, sin)
    turns = torch.polar(torch.ones(2, 1, 5, 4), positions[:, None, :, None] * frequencies)
    for x, turned in ((q, turned_q), (k, turned_k)):
        expected = torch.complex(x[..., :4], x[..., 4:]) * turns
        torch.testing.assert_close(
            turned, torch.cat((expected.real, expected.imag), -1), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned_q[:, :, 0], q[:, :, 0])  # position 0 turns nothing


def test_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(1)
    q, k = torch.randn(1, 1, 1, 16).expand(1, 1, 2, 16), torch.randn(1, 1, 1, 16).expand(1, 1, 2, 16)
    frequencies, _ = inv_freq({"rope_type": "default", "rope_theta": 1e4}, 16, max_position_embeddings=64)
    scores = []
    for start in (0, 37):
        cos, sin = cos_sin(torch.tensor([[start, start + 5]]), frequencies, 1.0, torch.float32)
        turned_q, turned_k = rotate(q, k, cos, sin)
        scores.append((turned_q[0, 0, 1] @ turned_k[0, 0, 0]).item())
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_angles_are_computed_in_float32_and_scaled_before_the_cast() -> None:
    frequencies, _ = inv_freq({"rope_type": "default", "rope_theta": 5e6}, 8, max_position_embeddings=64)
    positions = torch.tensor([[60000]])
    cos, sin = cos_sin(positions, frequencies, 1.25, torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    exact = [1.25 * math.cos(float(torch.tensor(60000.0) * f)) for f in frequencies]
    torch.testing.assert_close(cos.flatten().float(), torch.tensor(exact), atol=1e-2, rtol=1e-2)
