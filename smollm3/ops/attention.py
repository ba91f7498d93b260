"""Attention: one signature over eager | sdpa | flash_attention_2 | flex_attention.

In: queries, keys, values and what each query may see. Out: the mixed values, and the weights where they exist
(eager). Knows no layer, no cache and no config; never falls back to another implementation silently.
Shapes: B batch, T queries, S keys, H query heads, K kv heads, G = H / K, D head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from smollm3.errors import DeviceError, ParameterError
from smollm3.ops.flash import flash, require_flash
from smollm3.ops.flex import flex, require_flex
from smollm3.ops.mask import Visibility

IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flex_attention")


@dataclass(frozen=True)
class Attended:
    """`values` [B, T, H, D]; `weights` [B, H, T, S] after dropout, None where the implementation has none."""

    values: Tensor
    weights: Tensor | None = None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Visibility,
    *,
    scale: float,
    dropout: float = 0.0,
    implementation: str = "sdpa",
) -> Attended:
    """Mix the values of the keys that each query may see.

    Args:
        q, k, v: [B, H, T, D], [B, K, S, D], [B, K, S, D]; H is a multiple of K.
        dropout: probability that an attention weight is dropped; 0 outside training.

    Raises:
        ParameterError: an unknown implementation.
        DeviceError, MissingDependencyError: the implementation cannot run on this device, or is not
            installed.
    """
    if mask.allowed is None and k.shape[2] > q.shape[2] > 1:
        # An empty fixed-size cache: order alone decides, so the keys after the last query are not needed.
        k, v = k[:, :, : q.shape[2]], v[:, :, : q.shape[2]]
    if implementation == "sdpa":
        return Attended(_sdpa(q, k, v, mask.allowed, scale, dropout))
    if implementation == "eager":
        return _eager(q, k, v, mask.allowed, scale, dropout)
    if implementation == "flash_attention_2":
        return Attended(flash(q, k, v, mask, scale=scale, dropout=dropout))
    if implementation == "flex_attention":
        if dropout > 0:
            raise DeviceError("flex_attention has no dropout: set attention_dropout to 0 or pass 'sdpa'")
        return Attended(flex(q, k, v, mask, scale=scale))
    raise ParameterError(
        f"attn_implementation {implementation!r} is unknown: use one of {', '.join(IMPLEMENTATIONS)}"
    )


def _eager(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float, dropout: float) -> Attended:
    B, H, T, D = q.shape
    K, S = k.shape[1], k.shape[2]
    grouped = q.reshape(B, K, H // K * T, D)  # [B, K, G*T, D]: the queries of a kv head share one matmul
    scores = (grouped @ k.transpose(2, 3) * scale).view(B, H, T, S)
    if allowed is None and T > 1:
        allowed = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    if allowed is not None:
        weights = weights.masked_fill(~allowed, 0.0)  # where a query may see nothing, softmax spread evenly
    weights = F.dropout(weights, p=dropout, training=dropout > 0)
    mixed = weights.view(B, K, H // K * T, S) @ v  # [B, K, G*T, D]
    return Attended(mixed.view(B, H, T, D).transpose(1, 2), weights)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float, dropout: float) -> Tensor:
    B, H, T, D = q.shape
    K = k.shape[1]
    if T == 1:
        # A single query has no order among its group: the G heads of a kv head become G queries, nothing is
        # copied.
        grouped = q.reshape(B, K, H // K, D)
        mixed = F.scaled_dot_product_attention(
            grouped, k, v, attn_mask=allowed, dropout_p=dropout, scale=scale
        )
        return mixed.reshape(B, 1, H, D)
    group = H != K
    if group and allowed is not None and q.is_cuda:
        # CUDA's fused kernels take a mask or grouped heads, not both: without copies this would be the math
        # kernel.
        k, v = (x.repeat_interleave(H // K, dim=1) for x in (k, v))
        group = False
    mixed = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=allowed,
        dropout_p=dropout,
        is_causal=allowed is None,
        scale=scale,
        enable_gqa=group,
    )
    if allowed is not None and q.is_cuda:
        # Not every fused kernel there gives zeros where a query may see nothing.
        mixed = mixed.masked_fill(~allowed.any(dim=-1, keepdim=True), 0.0)
    return mixed.transpose(1, 2)  # [B, T, H, D]


def check_implementation(implementation: str, device: torch.device | str) -> None:
    """Raise, before a model is loaded, the one-line error that it would meet on this device."""
    if implementation not in IMPLEMENTATIONS:
        raise ParameterError(
            f"attn_implementation {implementation!r} is unknown: use one of {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation == "flash_attention_2":
        require_flash(torch.device(device))
    if implementation == "flex_attention":
        require_flex(torch.device(device))
