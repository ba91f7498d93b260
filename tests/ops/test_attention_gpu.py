"""Every attention implementation on a CUDA device against eager in float64 on the CPU."""

import pytest
import torch

from smollm3.ops.attention import attention
from smollm3.ops.mask import Visibility, layout, visibility

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
CASES = {
    "plain": (40, 0, None),
    "window": (40, 0, 7),
    "chunk over a cache": (5, 35, None),
    "single token": (1, 39, None),
    "left padding": (40, 0, None),
    "left padding, single token": (1, 39, None),
    "packed": (40, 0, None),
    "packed, window": (40, 0, 7),
}
CHOICES = [
    ("eager", torch.float32),
    ("sdpa", torch.float32),
    ("sdpa", torch.bfloat16),
    ("flex_attention", torch.float32),
    ("flex_attention", torch.bfloat16),
    ("flash_attention_2", torch.bfloat16),
    ("flash_attention_2", torch.float16),
]


def seen_by(name: str, device: str) -> Visibility:
    T, past, window = CASES[name]
    mask = positions = None
    if "padding" in name:
        mask = torch.ones(2, past + T, dtype=torch.long, device=device)
        mask[1, :9] = 0
    if "packed" in name:
        positions = torch.cat([torch.arange(n) for n in (11, 1, 28)]).expand(2, -1).to(device)
    where = layout(
        mask,
        positions,
        batch_size=2,
        num_queries=T,
        num_keys=past + T,
        past=past,
        device=torch.device(device),
    )
    return visibility(where, window)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("implementation", "dtype"), CHOICES, ids=str)
def test_forward_and_backward_equal_eager_in_float64(
    implementation: str, dtype: torch.dtype, name: str
) -> None:
    assert torch.cuda.is_available(), "this test needs a CUDA device"
    if implementation == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="an extra that is built on the machine itself")
    T, past, _ = CASES[name]
    torch.manual_seed(0)
    shapes = [(2, 8, T, 64), (2, 2, past + T, 64), (2, 2, past + T, 64)]
    rounded = [torch.randn(shape).to(dtype) for shape in shapes]
    exact = [x.double().requires_grad_() for x in rounded]
    tensors = [x.cuda().requires_grad_() for x in rounded]
    expected = attention(*exact, seen_by(name, "cpu"), scale=0.125, implementation="eager").values
    out = attention(*tensors, seen_by(name, "cuda"), scale=0.125, implementation=implementation).values
    assert out.isfinite().all()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=tolerance)
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad(out, tensors, direction.cuda().to(dtype))
    for left, right in zip(ours, torch.autograd.grad(expected, exact, direction), strict=True):
        assert left.isfinite().all()
        torch.testing.assert_close(left.cpu().double(), right, atol=10 * tolerance, rtol=10 * tolerance)
