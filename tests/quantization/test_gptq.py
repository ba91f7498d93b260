"""GPTQ of one matrix: a textbook's codes, less error at the outputs than rounding to nearest."""

import numpy as np
import pytest
import torch
from torch import Tensor

from smollm3.native.codes import unpack_codes
from smollm3.native.matrix import Layout
from smollm3.native.quantize import layout_of, quantize
from smollm3.quantization import gptq as module
from smollm3.quantization.gptq import gptq

LAYOUTS = {
    f"g{size}{'' if symmetric else ' with minimum'}": layout_of("int4", size, symmetric)
    for size in (32, 64, 128)
    for symmetric in (True, False)
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(rows: int = 40, cols: int = 256) -> Tensor:
    return draw(rows, cols, seed=0) * 0.05


def inputs(count: int = 600, cols: int = 256, *, seed: int = 1) -> Tensor:
    """Inputs of unequal sizes that go together in a few directions, as a model's do."""
    mixing = draw(cols, cols, seed=7) * torch.logspace(0, -2, cols)[:, None]
    return draw(count, cols, seed=seed) @ mixing


def output_error(found: Tensor, expected: Tensor, x: Tensor) -> float:
    return float((x @ (found - expected).T).square().sum() / (x @ expected.T).square().sum())


def textbook(W: Tensor, gram: Tensor, layout: Layout, damping: float) -> Tensor:
    """In float64: codes column by column, largest inputs first, at first with the quantiser's scales.

    Then scales and minimums by least squares over the square root of the inputs' sum; and both once more.
    """
    _, scales, mins = unpack_codes(quantize(W.numpy(), layout))
    mins = np.zeros_like(scales) if mins is None else mins
    scale, low = (torch.from_numpy(x).double().repeat_interleave(layout.group, 1) for x in (scales, mins))
    H = gram.double()
    H = H + damping * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    for _ in range(module.ROUNDS):
        code = eliminated(W.double(), H, scale, low, layout.zero)
        rows = [fitted(w, q, H, layout) for w, q in zip(W.double(), code, strict=True)]
        scale, low = (torch.stack(part).half().double() for part in zip(*rows, strict=True))
    return (code * scale + low).float()


def eliminated(W: Tensor, H: Tensor, scale: Tensor, low: Tensor, zero: int) -> Tensor:
    """Signed codes with the inverse itself: each column leaves it by one step of Gaussian elimination."""
    rest, inverse, code = W.clone(), torch.linalg.inv(H), torch.empty_like(W)
    for j in H.diagonal().argsort(descending=True, stable=True).tolist():
        code[:, j] = (((rest[:, j] - low[:, j]) / scale[:, j]).round() + zero).clamp(0, 15) - zero
        error = (rest[:, j] - code[:, j] * scale[:, j] - low[:, j]) / inverse[j, j]
        rest -= error[:, None] * inverse[j]
        inverse = inverse - inverse[:, j : j + 1] * inverse[j : j + 1] / inverse[j, j]
    return code


def fitted(w: Tensor, code: Tensor, H: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Scale and minimum of each column of a row, with which its codes' outputs are closest."""
    blocks = torch.block_diag(*torch.ones(len(w) // layout.group, layout.group, dtype=torch.float64)).T
    features = [blocks * code[:, None], *([blocks] if layout.has_min else [])]
    columns, root = torch.cat(features, 1), torch.linalg.cholesky(H).T
    found = torch.linalg.lstsq(root @ columns, root @ w, driver="gelsd").solution.split(blocks.shape[1])
    return blocks @ found[0], blocks @ found[1] if layout.has_min else torch.zeros_like(w)


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_are_a_plain_implementations(name: str) -> None:
    layout, W, x = LAYOUTS[name], weights(), inputs()
    found = torch.from_numpy(gptq(W, x.T @ x, layout).unpack())
    expected = textbook(W, x.T @ x, layout, module.DAMPING)
    # One code that falls to the other side of a tie moves all codes behind it in its row; scales are halves.
    same_rows = (found - expected).abs().amax(1) < 1e-3 * expected.abs().amax(1)
    assert same_rows.float().mean() >= 0.8
    assert output_error(found, W, x) == pytest.approx(output_error(expected, W, x), rel=0.02)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("seed", [1, 2], ids=["calibration inputs", "held inputs"])
def test_outputs_are_closer_than_by_rounding_to_nearest(name: str, seed: int) -> None:
    layout, W, x = LAYOUTS[name], weights(), inputs()
    found = torch.from_numpy(gptq(W, x.T @ x, layout).unpack())
    nearest = torch.from_numpy(quantize(W.numpy(), layout).unpack())
    seen = inputs(seed=seed)
    assert output_error(found, W, seen) < 0.6 * output_error(nearest, W, seen)
    assert (found - W).square().sum() > (nearest - W).square().sum(), "weights pay for outputs"


def test_inputs_that_do_not_go_together_leave_rounding_to_nearest() -> None:
    W = weights()
    for layout in LAYOUTS.values():
        nearest = quantize(W.numpy(), layout)
        for gram in (torch.eye(256) * 3, torch.zeros(256, 256)):
            found = gptq(W, gram, layout)
            same = unpack_codes(found)[0] == unpack_codes(nearest)[0]
            assert same.mean() > 0.98, "ties aside"
            change, before = (torch.from_numpy(x.unpack()) - W for x in (found, nearest))
            assert change.square().sum() <= before.square().sum() * (1 + 1e-6)


def test_an_input_that_was_never_there_keeps_its_weights() -> None:
    W, x = weights(), inputs()
    x[:, 32:64] = 0
    layout = layout_of("int4", 32)
    found, nearest = (
        unpack_codes(matrix)[0] for matrix in (gptq(W, x.T @ x, layout), quantize(W.numpy(), layout))
    )
    assert np.array_equal(found[:, 32:64], nearest[:, 32:64])


def test_fewer_inputs_than_columns_and_bf16_weights_are_fine() -> None:
    W, x = weights().bfloat16(), inputs(count=20)
    layout = layout_of("int4", 64)
    found = torch.from_numpy(gptq(W, x.T @ x, layout).unpack())
    nearest = torch.from_numpy(quantize(W.float().numpy(), layout).unpack())
    assert output_error(found, W.float(), x) < 0.2 * output_error(nearest, W.float(), x)


def test_damping_grows_until_the_sum_can_be_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    W, x = weights(), inputs(count=3)
    layout = layout_of("int4", 64)
    monkeypatch.setattr(module, "DAMPING", 1e-9)
    found = torch.from_numpy(gptq(W, x.T @ x, layout).unpack())
    assert torch.isfinite(found).all()
    assert output_error(found, W, x) < 0.02


def test_zero_weights_stay_zero_and_arguments_are_left_alone() -> None:
    x = inputs()
    gram = x.T @ x
    W, before = weights(), gram.clone()
    W[3] = 0
    copy = W.clone()
    found = gptq(W, gram, layout_of("int4", 64)).unpack()
    assert not found[3].any()
    assert torch.equal(W, copy)
    assert torch.equal(gram, before)


def test_the_packed_memory_may_be_given() -> None:
    layout, W, x = layout_of("int4", 64), weights(), inputs()
    expected = gptq(W, x.T @ x, layout)
    out = np.zeros_like(expected.data)
    assert np.shares_memory(gptq(W, x.T @ x, layout, out=out).data, out)
    assert np.array_equal(out, expected.data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    W, x = weights(), inputs()
    layout = layout_of("int4", 64)
    gram = x.T @ x
    W[2, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite weights"):
        gptq(W, gram, layout)
    gram[0, 0] = value
    with pytest.raises(ValueError, match="inputs that are NaN"):
        gptq(weights(), gram, layout)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_other_schemes_are_refused(scheme: str) -> None:
    with pytest.raises(ValueError, match="GPTQ rounds to int4"):
        gptq(weights(), torch.eye(256), layout_of(scheme, 64))
