"""Small models for the native engine, and float32 torch models with the same weights."""

import numpy as np
import torch
from torch import Tensor, nn

from smollm3.model.config import SmolLM3Config
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.native.matrix import KIND_W4, KIND_W6, KIND_W8, Layout, pack
from smollm3.quantization.packed import PackedLinear

LAYOUTS = {
    "int4": Layout(KIND_W4, 32, zero=8),
    "int4-min": Layout(KIND_W4, 32, has_min=True),
    "int6": Layout(KIND_W6, 64, zero=32),
    "int8": Layout(KIND_W8, 64, zero=128),
    "nf4": Layout(
        KIND_W4, 64, table=(-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)
    ),
}
# Relative error of the logits against torch: int8 activations and a bf16 or int8 cache, five layers.
BOUND = 0.06


def tiny_model(**changes: object) -> SmolLM3ForCausalLM:
    settings: dict[str, object] = {
        "vocab_size": 331,
        "hidden_size": 192,
        "intermediate_size": 320,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    model = SmolLM3ForCausalLM(SmolLM3Config(**(settings | changes))).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, model.config.hidden_size**-0.5)
            if "norm" in name:
                parameter.add_(1)  # norms about 1
    return model.to(torch.bfloat16)


def quantize(linear: nn.Linear, layout: Layout) -> PackedLinear:
    """Round to nearest, plainly."""
    w = linear.weight.detach().float().numpy()
    groups = w.reshape(len(w), -1, layout.group)
    mins = groups.min(-1) if layout.has_min else None
    if layout.table:
        scale = np.abs(groups).max(-1) / 127
        codes = np.abs((groups / scale[..., None])[..., None] - np.array(layout.table)).argmin(-1)
    elif mins is not None:
        scale = (groups.max(-1) - mins) / 15
        codes = np.rint((groups - mins[..., None]) / scale[..., None])
    else:
        top = layout.zero - 1
        scale = np.abs(groups).max(-1) / top
        codes = np.rint(groups / scale[..., None]) + layout.zero
    return PackedLinear(pack(layout, codes.reshape(w.shape).astype(np.uint8), scale, mins), linear.bias)


def pair(scheme: str, **changes: object) -> tuple[SmolLM3ForCausalLM, SmolLM3ForCausalLM]:
    """A model for the native engine, and a float32 torch model with the same weights."""
    model, plain = tiny_model(**changes), tiny_model(**changes).float()
    if scheme != "bf16":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name != "lm_head":
                packed = quantize(module, LAYOUTS[scheme])
                owner, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(owner), attribute, packed)
                twin = plain.get_submodule(name)
                assert isinstance(twin, nn.Linear)
                twin.weight.data = packed.dequantize()
    return model, plain


def torch_logits(model: SmolLM3ForCausalLM, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].float()


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 331, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())
