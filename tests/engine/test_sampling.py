"""Sampling functions against plain definitions, in which everything is sorted, and counts of many draws."""

import math
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smollm3.engine import sampling

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def warp(logits: Tensor, *rows: dict[str, float]) -> Tensor:
    options = [{**OFF, **row} for row in rows]
    logits = logits.clone()
    sampling.warp_(
        logits,
        [o["temperature"] for o in options],
        [int(o["top_k"]) for o in options],
        [o["top_p"] for o in options],
        [o["min_p"] for o in options],
    )
    return logits


def kept_by_definition(
    logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> set[int]:
    """Ids that remain, by ordering the whole vocabulary in exact steps."""
    scaled = (logits / temperature).double()
    order = sorted(range(len(scaled)), key=lambda i: -float(scaled[i]))
    if top_k:
        order = [i for i in order if scaled[i] >= scaled[order[min(top_k, len(order)) - 1]]]
    p = torch.softmax(scaled[order], 0).tolist()
    mass, nucleus = 0.0, []
    for token_id, probability in zip(order, p, strict=True):
        if nucleus and mass >= top_p:
            break
        nucleus.append(token_id)
        mass += probability
    best = float(scaled[order[0]])
    return {i for i in nucleus if min_p == 0 or float(scaled[i]) - best >= math.log(min_p)}


@pytest.mark.parametrize("seed", range(40))
def test_truncation_keeps_what_the_definitions_keep(seed: int) -> None:
    random = Random(seed)
    vocab_size = random.choice([5, 40, 3000])
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(seed)) * random.choice(
        [0.5, 3]
    )
    rows = [
        {
            "temperature": random.choice([0.6, 1.0, 1.7]),
            "top_k": random.choice([0, 1, 3, 50, 10**6]),
            "top_p": random.choice([1.0, 0.95, 0.5, 0.01, 0.0]),
            "min_p": random.choice([0.0, 0.05, 0.3]),
        }
        for _ in range(3)
    ]
    warped = warp(logits, *rows)
    for row, options in enumerate(rows):
        kept = set(warped[row].isfinite().nonzero()[:, 0].tolist())
        assert kept == kept_by_definition(logits[row], **options), options  # type: ignore[arg-type]
        torch.testing.assert_close(
            warped[row][sorted(kept)], (logits[row] / options["temperature"])[sorted(kept)]
        )


def test_a_flat_distribution_needs_more_than_the_candidates_and_gets_them() -> None:
    vocab_size = sampling.NUM_CANDIDATES * 4
    logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(0)) * 0.01
    warped = warp(logits, {"top_p": 0.9})
    assert set(warped[0].isfinite().nonzero()[:, 0].tolist()) == kept_by_definition(
        logits[0], 1.0, 0, 0.9, 0.0
    )
    assert warped.isfinite().sum() > sampling.NUM_CANDIDATES


def test_ties_at_the_edge_stay_together() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert warp(logits, {"top_k": 2}).isfinite().tolist() == [[True, True, True, True, False]]
    assert warp(logits, {"top_k": 2, "top_p": 0.6}).isfinite().tolist() == [[True, True, True, True, False]]
    assert warp(logits, {"top_k": 2, "top_p": 0.3}).isfinite().tolist() == [
        [True, False, False, False, False]
    ]


def test_ids_that_are_ruled_out_before_stay_out() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]])
    for options in ({"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.01}, {"temperature": 2.0}):
        assert warp(logits, options).isfinite().tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-300, 5e-324])
def test_the_smallest_temperatures_leave_the_likeliest_id(temperature: float) -> None:
    logits = torch.tensor([[3.0, 7.5, 7.0, -math.inf], [-900.0, -800.0, -700.0, -850.0]])
    warped = warp(logits, *[{"temperature": temperature, "top_p": 0.9}] * 2)
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert sampling.draw(warped, [uniform] * 2).tolist() == [1, 2]
    assert bool(warped.amax(-1).isfinite().all())


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e-30, 1e30, 1e300])
def test_the_strongest_repetition_penalties_leave_numbers(penalty: float) -> None:
    logits = torch.tensor([[3.0, 0.0, -7.0, 7.5, -math.inf]])
    rows, ids = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 2, 4])
    sampling.penalise_repetition_(logits, rows, ids, torch.tensor([penalty] * 4))
    likeliest = 0 if penalty < 1 else 3
    assert logits[0].argmax() == likeliest
    warped = warp(logits, {"temperature": 1e-300})
    assert not warped.isnan().any()
    assert sampling.draw(warped, [0.5]).tolist() == [likeliest]


def test_options_that_are_off_change_nothing() -> None:
    logits = torch.randn(2, 7)
    assert torch.equal(warp(logits, {}, {}), logits)


@pytest.mark.parametrize(("vocab_size", "num"), [(10_000, 7), (10_001, 50), (300, 50), (64, 64), (5, 5)])
def test_the_largest_logits_are_those_of_a_full_sort(vocab_size: int, num: int) -> None:
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(6)).round(decimals=1)
    assert torch.equal(sampling._largest(logits, num), logits.sort(descending=True).values[:, :num])


def test_a_draw_is_that_of_the_plain_definition() -> None:
    scores = torch.randn(200, 3001, generator=torch.Generator().manual_seed(7)) * 4
    scores[::2, torch.arange(3001) % 50 != 3] = -math.inf
    uniforms = [Random(8).random() for _ in range(200)]
    reached = scores.double().softmax(-1).cumsum(-1)
    expected = torch.searchsorted(reached, torch.tensor(uniforms).double()[:, None], right=True)[:, 0]
    assert torch.equal(sampling.draw(scores, uniforms), expected)


def test_rows_do_not_look_at_each_other() -> None:
    logits = torch.randn(4, 2000, generator=torch.Generator().manual_seed(1))
    rows: list[dict[str, float]] = [{"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.2, "temperature": 0.5}, {}]
    together = warp(logits, *rows)
    for row, options in enumerate(rows):
        assert torch.equal(warp(logits[row : row + 1], options)[0], together[row])


def test_draws_invert_the_cumulative_distribution() -> None:
    scores = torch.tensor([0.5, 0.25, 0.25]).log()[None]
    for uniform, token_id in [(0.0, 0), (0.49, 0), (0.51, 1), (0.74, 1), (0.76, 2), (1 - 2**-53, 2)]:
        assert sampling.draw(scores, [uniform]).tolist() == [token_id]
    gaps = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    assert sampling.draw(gaps, [0.0]).tolist() == [1]
    assert sampling.draw(gaps, [1 - 2**-53]).tolist() == [3]


def test_draws_follow_the_distribution() -> None:
    scores = torch.randn(16, generator=torch.Generator().manual_seed(2)) * 1.5
    num, random = 20_000, Random(0)
    drawn = sampling.draw(scores.expand(num, -1), [random.random() for _ in range(num)])
    expected = scores.softmax(0) * num
    chi_square = float(((torch.bincount(drawn, minlength=16) - expected) ** 2 / expected).sum())
    assert chi_square < 37.7  # 15 degrees of freedom: one in a thousand lies above


def test_a_draw_is_the_same_in_any_batch() -> None:
    scores = torch.randn(5, 50_000, generator=torch.Generator().manual_seed(3))
    uniforms = [0.1, 0.9, 0.3, 0.7, 0.5]
    together = sampling.draw(scores, uniforms).tolist()
    assert together == [int(sampling.draw(scores[i : i + 1], [u])) for i, u in enumerate(uniforms)]


@pytest.mark.parametrize("vocab_size", [49_152, 128_256])
def test_log_probabilities_are_the_same_in_any_batch(vocab_size: int) -> None:
    """To the last bit: the edge of a nucleus hangs on the same sum, and an answer on that edge."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)  # torch splits one row's sum between them, but not the sums of many rows
    logits = torch.randn(64, vocab_size, generator=torch.Generator().manual_seed(9)) * 4
    ids = logits.argmin(-1)
    try:
        together = sampling.log_probabilities(logits, ids, 3)
        alone = [sampling.log_probabilities(logits[i : i + 1], ids[i : i + 1], 3) for i in range(len(ids))]
    finally:
        torch.set_num_threads(num_threads)
    for part, rows in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(part, torch.cat(rows))


def test_edits_reach_their_cells_and_no_others() -> None:
    logits = torch.tensor([[1.0, -1.0, 2.0], [4.0, -4.0, 0.0]])
    rows, ids = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    sampling.penalise_repetition_(logits, rows, ids, torch.tensor([2.0, 2.0, 4.0, 4.0]))
    assert logits.tolist() == [[0.5, -2.0, 2.0], [1.0, -16.0, 0.0]]
    sampling.add_(logits, torch.tensor([1, 1]), torch.tensor([2, 2]), torch.tensor([1.0, 2.0]))
    assert logits[1, 2] == 3
    sampling.forbid_(logits, torch.tensor([0]), torch.tensor([2]))
    assert logits.isneginf().nonzero().tolist() == [[0, 2]]


def test_log_probabilities_are_those_of_a_softmax() -> None:
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(4))
    chosen, top, top_ids = sampling.log_probabilities(logits, torch.tensor([3, 8]), 20)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(chosen, expected[[0, 1], [3, 8]])
    torch.testing.assert_close(top, expected.sort(descending=True).values)
    assert top_ids.tolist() == expected.argsort(descending=True).tolist()


class Operators(TorchDispatchMode):
    """Notes how much of a row is put in order: k of each topk, the row's length of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.ordered: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name == "topk":
            self.ordered.append(args[1])
        elif name in ("sort", "argsort"):
            self.ordered.append(args[0].shape[-1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("options", "ordered"),
    [
        ({"top_k": 50}, [50, 50]),
        ({"top_k": 50, "top_p": 0.95}, [50, 50, 64, 64]),
        ({"top_p": 0.95}, [64, 64]),
        ({"min_p": 0.05}, []),
        ({"temperature": 0.7}, []),
    ],
)
def test_of_a_large_vocabulary_only_the_top_is_put_in_order(
    options: dict[str, float], ordered: list[int]
) -> None:
    logits = torch.randn(1, 128_256, generator=torch.Generator().manual_seed(5)) * 6
    with Operators() as operators:
        warp(logits, options)
    assert operators.ordered == ordered
