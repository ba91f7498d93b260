"""Rotary position embedding: frequencies of each type, and the rotation of queries and keys.

In: RoPE settings (numbers), position ids, q and k. Out: rotated q and k. Knows no config class and no module.
Shapes: B batch, T tokens, H query heads, K kv heads, D head dim.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# What YaRN's paper recommends when a config leaves them out.
BETA_FAST = 32.0
BETA_SLOW = 1.0


def inv_freq(
    rope_parameters: Mapping[str, Any],
    head_dim: int,
    seq_len: Tensor | None = None,
    *,
    max_position_embeddings: int,
    device: torch.device | str | None = None,
) -> tuple[Tensor, float]:
    """Return the angle per position of each pair of dimensions, and the factor on cos and sin.

    Args:
        rope_parameters: `rope_type`, `rope_theta` and the numbers of that type.
        seq_len: scalar tensor, the longest row in tokens; only the dynamic type looks at it, and only beyond
            `max_position_embeddings`.

    Returns:
        float32 tensor [D/2] in radians per position, attention scaling.
    """
    theta = rope_parameters["rope_theta"]
    rope_type = rope_parameters["rope_type"]
    if rope_type == "dynamic" and seq_len is not None:
        stretched = _stretched_theta(
            theta, rope_parameters["factor"], head_dim, seq_len, max_position_embeddings
        )
        return 1.0 / stretched ** _exponents(head_dim, device), 1.0
    if rope_type == "yarn":
        return _yarn(rope_parameters, head_dim, device)
    frequencies = 1.0 / theta ** _exponents(head_dim, device)
    if rope_type == "linear":
        frequencies = frequencies / rope_parameters["factor"]
    elif rope_type == "llama3":
        frequencies = _llama3(frequencies, rope_parameters)
    return frequencies, 1.0


def _exponents(head_dim: int, device: torch.device | str | None) -> Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim


def _stretched_theta(
    theta: float, factor: float, head_dim: int, seq_len: Tensor, max_positions: int
) -> Tensor:
    """NTK-aware base for rows longer than the model was trained on; no device sync."""
    length = seq_len.clamp(min=max_positions)
    growth = factor * length / max_positions - (factor - 1)
    return theta * growth ** (head_dim / (head_dim - 2))


def _yarn(p: Mapping[str, Any], head_dim: int, device: torch.device | str | None) -> tuple[Tensor, float]:
    """Interpolate slow dimensions, keep fast ones, ramp between; scale cos and sin for the longer context."""
    theta, factor = p["rope_theta"], p["factor"]
    trained = p["original_max_position_embeddings"]

    def dim_turning(times: float) -> float:
        """The dimension whose angle makes `times` full turns over the trained context."""
        return head_dim * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dim_turning(p.get("beta_fast") or BETA_FAST), dim_turning(p.get("beta_slow") or BETA_SLOW)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32, device=device) - low) / span).clamp(0, 1)
    turns = theta ** _exponents(head_dim, device)
    keep = 1 - ramp
    frequencies = 1.0 / (factor * turns) * (1 - keep) + 1.0 / turns * keep
    return frequencies, _yarn_scaling(p)


def _yarn_scaling(p: Mapping[str, Any]) -> float:
    if p.get("attention_factor") is not None:
        return float(p["attention_factor"])

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(p["factor"]) + 1.0 if p["factor"] > 1 else 1.0

    if p.get("mscale") and p.get("mscale_all_dim"):
        return mscale(p["mscale"]) / mscale(p["mscale_all_dim"])
    return mscale(1.0)


def _llama3(frequencies: Tensor, p: Mapping[str, Any]) -> Tensor:
    """Slow the long waves down by `factor`, keep the short ones, blend those in between."""
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    trained = p["original_max_position_embeddings"]
    wavelength = 2 * math.pi / frequencies
    slowed = torch.where(wavelength > trained / low, frequencies / p["factor"], frequencies)
    blend = (trained / wavelength - low) / (high - low)
    between = (wavelength >= trained / high) & (wavelength <= trained / low)
    return torch.where(between, (1 - blend) * slowed / p["factor"] + blend * slowed, slowed)


def cos_sin(
    position_ids: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cos and sin [B, 1, T, D/2] of position_ids [B, T]: angles in float32, then cast to `dtype`."""
    angles = position_ids[:, None, :, None].float() * frequencies
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each pair (x[i], x[i + D/2]) of q [B, H, T, D] and k [B, K, T, D] by its angle."""
    return _turn(q, cos, sin), _turn(k, cos, sin)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)
