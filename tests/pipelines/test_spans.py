"""The best spans against the definition, written out as loops over all spans."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.pipelines.spans import Span, Window, align_to_words, best_spans

TEXT = "The engine, built in 1843 by Ada_L, runs."


def random_windows(seed: int, num_windows: int, num_question: int, T: int) -> list[Window]:
    """Windows over tokens of three characters, the question's tokens first, overlapping by two."""
    torch.manual_seed(seed)
    windows = []
    for idx in range(num_windows):
        places = [(0, 0)] * num_question + [
            (3 * (idx * (T - 2) + i), 3 * (idx * (T - 2) + i) + 3) for i in range(T)
        ]
        in_context = torch.tensor([False] * num_question + [True] * T)
        size = num_question + T
        windows.append(Window(3 * torch.randn(size), 3 * torch.randn(size), in_context, places))
    return windows


def oracle(windows: list[Window], max_len: int, top_k: int, with_null: bool) -> list[Span]:
    """All spans of all windows, scored one by one in plain Python."""

    def allowed(window: Window, i: int) -> bool:
        return bool(window.in_context[i]) or (with_null and i == 0)

    def total(name: str) -> float:
        return sum(
            math.exp(getattr(w, name)[i].item())
            for w in windows
            for i in range(len(w.offsets))
            if allowed(w, i)
        )

    start_sum, end_sum = total("start_logits"), total("end_logits")
    best: dict[tuple[int, int], float] = {}
    nulls = []
    for w in windows:
        p_start = [math.exp(x) / start_sum for x in w.start_logits.tolist()]
        p_end = [math.exp(x) / end_sum for x in w.end_logits.tolist()]
        nulls.append(p_start[0] * p_end[0])
        for i, j in product(range(len(w.offsets)), repeat=2):
            if i <= j < i + max_len and w.in_context[i] and w.in_context[j]:
                key = (w.offsets[i][0], w.offsets[j][1])
                best[key] = max(best.get(key, 0.0), p_start[i] * p_end[j])
    if with_null:
        best[0, 0] = min(nulls)
    ordered = sorted(best.items(), key=lambda item: -item[1])
    return [Span(score, *key) for key, score in ordered[:top_k]]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_windows=st.integers(1, 3),
    T=st.integers(3, 9),
    max_len=st.integers(1, 12),
    top_k=st.integers(1, 6),
    with_null=st.booleans(),
)
def test_best_spans_are_those_of_brute_force(
    seed: int, num_windows: int, T: int, max_len: int, top_k: int, with_null: bool
) -> None:
    windows = random_windows(seed, num_windows, 2, T)
    found = best_spans(windows, max_len, top_k, "x" * 200, with_null=with_null)
    expected = oracle(windows, max_len, top_k, with_null)
    assert [(span.start, span.end) for span in found] == [(span.start, span.end) for span in expected]
    assert [span.score for span in found] == pytest.approx([span.score for span in expected], rel=1e-5)


def test_a_window_without_the_answer_does_not_outbid_the_one_that_has_it() -> None:
    offsets = [(0, 0), (0, 3), (3, 6)]
    in_context = torch.tensor([False, True, True])
    flat = Window(torch.tensor([0.0, -9.0, -20.0]), torch.tensor([0.0, -20.0, -9.0]), in_context, offsets)
    sure = Window(
        torch.tensor([0.0, 4.0, 3.0]), torch.tensor([0.0, 3.0, 4.0]), in_context, [(0, 0), (6, 9), (9, 12)]
    )
    # Taken alone, the flat window gives its span nearly 1 and the other window less than that.
    (best,) = best_spans([flat, sure], 5, 1, "x" * 12)
    assert (best.start, best.end) == (6, 12)


def test_no_answer_wins_only_where_every_window_says_so() -> None:
    offsets = [(0, 0), (0, 3)]
    in_context = torch.tensor([False, True])
    nothing = Window(torch.tensor([5.0, 0.0]), torch.tensor([5.0, 0.0]), in_context, offsets)
    something = Window(torch.tensor([-5.0, 2.0]), torch.tensor([-5.0, 2.0]), in_context, [(0, 0), (3, 6)])
    best = [best_spans([nothing, other], 5, 2, "x" * 6, with_null=True)[0] for other in (nothing, something)]
    assert [(span.start, span.end) for span in best] == [(0, 0), (3, 6)]


def test_blanks_around_an_answer_are_not_part_of_it() -> None:
    window = Window(
        torch.tensor([9.0, 0.0]), torch.tensor([9.0, 0.0]), torch.tensor([True, True]), [(2, 7), (7, 9)]
    )
    (best,) = best_spans([window], 5, 1, "in Rome now")
    assert "in Rome now"[best.start : best.end] == "Rome"


@pytest.mark.parametrize(
    ("span", "expected"),
    [((5, 7), "engine"), ((4, 10), "engine"), ((12, 15), "built"), ((30, 31), "Ada_L"), ((21, 25), "1843"),
     ((10, 11), ","), ((0, 1), "The"), ((36, 38), "runs")],
)  # fmt: skip
def test_spans_are_widened_to_words(span: tuple[int, int], expected: str) -> None:
    start, end = align_to_words(TEXT, *span)
    assert TEXT[start:end] == expected
