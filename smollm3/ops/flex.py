"""Attention through PyTorch's flex_attention.

In: queries, keys, values and a `Visibility`. Out: the mixed values. On CUDA the kernel is compiled for the
mask; on the CPU PyTorch has a forward only.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smollm3.errors import DeviceError
from smollm3.ops.mask import Visibility

_DEVICES = ("cuda", "cpu", "xpu")


def require_flex(device: torch.device) -> None:
    """Raise DeviceError where PyTorch has no flex_attention."""
    if device.type not in _DEVICES and device.type != "meta":
        raise DeviceError(f"flex_attention does not run on {device.type}: pass attn_implementation='sdpa'")


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Visibility, *, scale: float) -> Tensor:
    """Mix the values: q [B, H, T, D], k and v [B, K, S, D] -> [B, T, H, D].

    Raises DeviceError where PyTorch cannot run it, or cannot run it backwards.
    """
    require_flex(q.device)
    if q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        raise DeviceError(
            "flex_attention has no backward on the CPU: train with attn_implementation='sdpa', or run under "
            "torch.no_grad()"
        )
    block_mask = mask.derive(
        "block_mask", lambda seen: _block_mask(seen.allowed, q.shape[2], k.shape[2], q.device)
    )
    run = _compiled() if q.is_cuda else _plain()
    with warnings.catch_warnings():
        # Uncompiled on purpose where there is no fused kernel: a hint about speed, not about the result.
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        mixed: Tensor = run(
            q,
            k,
            v,
            block_mask=block_mask,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
            kernel_options=_kernel_options(q),
        )
    return mixed.transpose(1, 2)


def _block_mask(allowed: Tensor | None, T: int, S: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    if allowed is None:
        if T == 1:
            return None
        return create_block_mask(lambda b, h, i, j: j <= i, None, None, T, S, device=str(device))
    rows = None if allowed.shape[0] == 1 else allowed.shape[0]

    def may_see(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return allowed[0 if rows is None else b, 0, i, j]

    return create_block_mask(may_see, rows, None, T, S, device=str(device))


def _kernel_options(q: Tensor) -> dict[str, bool] | None:
    # For fewer than 128 queries PyTorch takes its decoding kernel, and finds no configuration of it once the
    # queries of a kv head are more than 128 (seen with torch 2.11 at 40 in groups of 4): it fails to compile.
    return {"FORCE_USE_FLEX_ATTENTION": True} if q.is_cuda and q.shape[2] > 1 else None


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@functools.cache
def _plain() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention
