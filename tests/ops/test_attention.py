"""Every attention implementation gives what the plain one gives, forwards and backwards."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from smollm3.errors import DeviceError, MissingDependencyError, ParameterError
from smollm3.ops import flash
from smollm3.ops.attention import attention, check_implementation
from smollm3.ops.mask import Visibility, given_visibility, layout, visibility

SCALE = 0.3


def plain(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Attention as the formula says it, one head at a time; [B, T, H, D]."""
    heads = []
    for h in range(q.shape[1]):
        kv = h * k.shape[1] // q.shape[1]
        scores = (q[:, h] @ k[:, kv].transpose(1, 2) * SCALE).masked_fill(~allowed[:, 0], float("-inf"))
        weights = scores.softmax(-1).nan_to_num(0.0)
        heads.append(weights @ v[:, kv])
    return torch.stack(heads, dim=2)


def inputs(H: int, K: int, T: int, S: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, H, T, 8), torch.randn(2, K, S, 8), torch.randn(2, K, S, 8)


def seen_by(
    kind: str, T: int, past: int, window: int | None = None, num_keys: int | None = None
) -> Visibility:
    total = past + T
    mask = positions = None
    if kind == "left":
        mask = torch.ones(2, total, dtype=torch.long)
        mask[1, :3] = 0
    if kind == "packed":
        positions = torch.arange(past, total).repeat(2, 1)
        positions[0, T // 2 :] = torch.arange(T - T // 2)
    where = layout(
        mask,
        positions,
        batch_size=2,
        num_queries=T,
        num_keys=num_keys or total,
        past=past,
        device=torch.device("cpu"),
    )
    return visibility(where, window)


def spelled_out(seen: Visibility, T: int, S: int) -> Tensor:
    if seen.allowed is not None:
        return seen.allowed.expand(2, 1, T, S)
    order = torch.ones(T, S, dtype=torch.bool)
    return (order.tril() if T > 1 else order)[None, None].expand(2, 1, T, S)


CASES = [
    ("plain", 7, 0, None, None),
    ("plain", 7, 0, 3, None),
    ("plain", 7, 0, None, 12),
    ("plain", 3, 5, None, None),
    ("plain", 1, 6, None, None),
    ("plain", 1, 6, 4, None),
    ("plain", 1, 6, None, 12),
    ("left", 7, 0, None, None),
    ("left", 7, 0, 2, None),
    ("left", 2, 5, None, None),
    ("left", 1, 6, None, 12),
    ("packed", 7, 0, None, None),
    ("packed", 4, 3, 2, None),
]


@pytest.mark.parametrize(("H", "K"), [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_forward_and_backward_equal_the_formula(implementation: str, case: Any, H: int, K: int) -> None:
    kind, T, past, window, num_keys = case
    seen = seen_by(kind, T, past, window, num_keys)
    S = num_keys or past + T
    tensors = [x.requires_grad_() for x in inputs(H, K, T, S)]
    out = attention(*tensors, seen, scale=SCALE, implementation=implementation).values
    expected = plain(*tensors, spelled_out(seen, T, S))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(out)
    ours = torch.autograd.grad(out, tensors, direction)
    for left, right in zip(ours, torch.autograd.grad(expected, tensors, direction), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 4, 8, 12)], ids=str)
def test_flex_equals_the_formula(case: Any) -> None:
    kind, T, past, window, num_keys = case
    seen = seen_by(kind, T, past, window, num_keys)
    S = num_keys or past + T
    q, k, v = inputs(4, 2, T, S)
    out = attention(q, k, v, seen, scale=SCALE, implementation="flex_attention").values
    torch.testing.assert_close(out, plain(q, k, v, spelled_out(seen, T, S)), atol=1e-5, rtol=1e-5)


def test_flex_says_what_it_cannot_do() -> None:
    q, k, v = inputs(2, 2, 3, 3)
    with pytest.raises(DeviceError, match=r"no backward on the CPU.*sdpa"):
        attention(q.requires_grad_(), k, v, Visibility(), scale=SCALE, implementation="flex_attention")
    with pytest.raises(DeviceError, match="no dropout"):
        attention(q, k, v, Visibility(), scale=SCALE, dropout=0.1, implementation="flex_attention")


def test_eager_returns_weights_that_sum_to_one_and_nothing_for_padding() -> None:
    seen = seen_by("left", 7, 0)
    attended = attention(*inputs(4, 2, 7, 7), seen, scale=SCALE, implementation="eager")
    assert attended.weights is not None
    sums = attended.weights.sum(-1)
    torch.testing.assert_close(sums[0], torch.ones(4, 7))
    torch.testing.assert_close(sums[1], torch.tensor([0.0] * 3 + [1.0] * 4).expand(4, 7))
    assert attention(*inputs(4, 2, 7, 7), seen, scale=SCALE).weights is None


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dropout_drops_weights(implementation: str) -> None:
    q, k, v = inputs(2, 2, 5, 5)
    kept = attention(q, k, v, Visibility(), scale=SCALE, implementation=implementation).values
    dropped = attention(q, k, v, Visibility(), scale=SCALE, dropout=0.5, implementation=implementation).values
    assert not torch.allclose(kept, dropped)


def test_unknown_and_unavailable_implementations_say_what_to_pass() -> None:
    q, k, v = inputs(2, 2, 3, 3)
    with pytest.raises(ParameterError, match="'flash' is unknown: use one of eager, sdpa"):
        attention(q, k, v, Visibility(), scale=SCALE, implementation="flash")
    with pytest.raises(ParameterError, match="unknown"):
        check_implementation("paged", "cpu")
    for call in (
        lambda: attention(q, k, v, Visibility(), scale=SCALE, implementation="flash_attention_2"),
        lambda: check_implementation("flash_attention_2", "cpu"),
    ):
        with pytest.raises(
            DeviceError, match=r"needs a CUDA device.*on cpu.*pass attn_implementation='sdpa'"
        ):
            call()
    with pytest.raises(DeviceError, match="does not run on mps"):
        check_implementation("flex_attention", torch.device("mps"))
    for name in ("eager", "sdpa", "flex_attention"):
        check_implementation(name, "cpu")


def test_flash_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'smollm3\[flash-attn\]', or pass"):
        check_implementation("flash_attention_2", "cuda")


class ReferenceFlash(types.ModuleType):
    """flash-attn by the formula: rows are aligned at the end, windows look back from there."""

    @staticmethod
    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert causal
        assert dropout_p == 0.0
        T, S = q.shape[1], k.shape[1]
        i, j = torch.arange(T)[:, None] + S - T, torch.arange(S)[None]
        allowed = (j <= i) & ((window_size[0] < 0) | (j >= i - window_size[0]))
        assert softmax_scale == SCALE
        return plain(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), allowed[None, None])

    @classmethod
    def flash_attn_varlen_func(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        **settings: Any,
    ) -> Tensor:
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert int(cu_seqlens_q.diff().max()) == max_seqlen_q
        assert int(cu_seqlens_k.diff().max()) == max_seqlen_k
        assert int(cu_seqlens_q[-1]) == q.shape[0]
        assert int(cu_seqlens_k[-1]) == k.shape[0] == v.shape[0]
        out = []
        for r in range(len(cu_seqlens_q) - 1):
            a, b, c, d = (int(x) for x in (*cu_seqlens_q[r : r + 2], *cu_seqlens_k[r : r + 2]))
            out.append(cls.flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], **settings)[0])
        return torch.cat(out)


@pytest.fixture
def reference_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's calls with a plain stand-in for the package, which needs a GPU."""
    monkeypatch.setitem(sys.modules, "flash_attn", ReferenceFlash("flash_attn"))


def run_flash(q: Tensor, k: Tensor, v: Tensor, seen: Visibility) -> Tensor:
    return flash.run_kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), seen, SCALE, 0.0)


@pytest.mark.usefixtures("reference_flash")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_flash_is_called_with_the_runs_that_the_mask_means(case: Any) -> None:
    kind, T, past, window, num_keys = case
    seen = seen_by(kind, T, past, window, num_keys)
    S = num_keys or past + T
    q, k, v = inputs(4, 2, T, S)
    torch.testing.assert_close(run_flash(q, k, v, seen), plain(q, k, v, spelled_out(seen, T, S)))


@pytest.mark.usefixtures("reference_flash")
def test_flash_reads_ready_made_masks_that_are_causal_and_refuses_others() -> None:
    q, k, v = inputs(4, 2, 3, 8)
    allowed = torch.zeros(2, 1, 3, 8, dtype=torch.bool)
    allowed[0, 0] = torch.tensor(
        [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0]]
    )
    allowed[1, 0, 1:] = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0]])
    expected = plain(q, k, v, allowed)
    torch.testing.assert_close(run_flash(q, k, v, given_visibility(allowed)), expected)
    windowed = given_visibility(allowed, window=2)
    assert windowed.allowed is not None
    torch.testing.assert_close(run_flash(q, k, v, windowed), plain(q, k, v, windowed.allowed))
    tree = allowed.clone()
    tree[0, 0, 2, 4] = False
    with pytest.raises(ParameterError, match="each query sees one key more"):
        run_flash(q, k, v, given_visibility(tree))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sdpa_copies_no_heads(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, T, past, window, num_keys = case
    seen = seen_by(kind, T, past, window, num_keys)
    q, k, v = inputs(4, 2, T, num_keys or past + T)
    handed: list[Tensor] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        handed.extend((key, value))
        return kernel(query, key, value, **settings)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    attention(q, k, v, seen, scale=SCALE)
    assert [x.data_ptr() for x in handed] == [k.data_ptr(), v.data_ptr()]
    assert all(x.shape[1] == 2 for x in handed)
