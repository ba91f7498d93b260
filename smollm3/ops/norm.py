"""Root mean square normalisation.

In: activations [..., N] of any float dtype and a weight [N]. Out: the same shape and dtype.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide x by its root mean square over the last axis, then scale by `weight`.

    The mean is taken in float32 and the result cast back *before* the weight: the order in which the model
    was trained, and the one that decides bf16's last bit.
    """
    if x.is_cuda and torch.is_inference_mode_enabled():  # the engine's steps: one kernel in place of seven
        return weight * F.rms_norm(x, (x.shape[-1],), None, eps)
    wide = x.to(torch.float32)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)
