"""What a request may ask for: every numeric field refuses what is no number of its range, with one line."""

import math
from typing import Any

import numpy as np
import pytest

from smollm3.engine.params import SamplingParams, check_number
from smollm3.errors import ParameterError

NUMBERS = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_new_tokens",
    "min_new_tokens",
    "seed",
    "logprobs",
]
NEVER = [math.nan, math.inf, -math.inf, True, False, "1", [1], {}, 1j]
NEGATIVE = [name for name in NUMBERS if name not in ("presence_penalty", "frequency_penalty", "seed")]
INTEGERS = ["top_k", "max_new_tokens", "min_new_tokens", "seed", "logprobs"]


def params(**values: Any) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 5, **values})


def refused(name: str, value: Any) -> str:
    with pytest.raises(ParameterError) as caught:
        params(**{name: value})
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", NEVER, ids=repr)
def test_what_is_no_finite_number_is_refused(name: str, value: Any) -> None:
    assert "give" in refused(name, value)


@pytest.mark.parametrize("name", NEGATIVE)
@pytest.mark.parametrize("value", [-1, -(10**30)])
def test_negative_values_are_refused(name: str, value: int) -> None:
    refused(name, value)


@pytest.mark.parametrize("name", INTEGERS)
def test_fractions_are_refused_where_integers_count(name: str) -> None:
    refused(name, 1.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 1.0001),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("min_new_tokens", 6),
    ],
)
def test_values_out_of_their_range_are_refused(name: str, value: float) -> None:
    refused(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", [1, 2]),
        ("logit_bias", {"1": 2.0}),
        ("logit_bias", {-1: 2.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: None}),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [[1, -1]]),
        ("bad_words_ids", ["word"]),
        ("bad_words_ids", "word"),
        ("bad_words_ids", [[True]]),
        ("bad_words_ids", 3),
        ("do_sample", 1),
        ("output_scores", "yes"),
        ("output_logits", None),
    ],
)
def test_ids_and_flags_are_checked(name: str, value: Any) -> None:
    refused(name, value)


def test_eos_ids_are_checked() -> None:
    with pytest.raises(ParameterError, match="eos_token_id"):
        params(eos_token_ids=frozenset({-1}))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0},
        {"top_p": 0},
        {"top_p": 1},
        {"top_k": 10**9},
        {"min_p": 1.0},
        {"seed": -7},
        {"presence_penalty": -2.0},
        {"temperature": np.float32(0.5)},
        {"top_k": np.int64(3)},
        {"bad_words_ids": [(1, 2), [3]]},
        {"logit_bias": {3: -100}},
        {"min_new_tokens": 5},
    ],
    ids=str,
)
def test_the_ends_of_each_range_and_numpy_numbers_pass(values: dict[str, Any]) -> None:
    assert params(**values)


def test_only_sampling_at_a_temperature_above_zero_leaves_room_for_chance() -> None:
    assert not params().samples
    assert params(do_sample=True).samples
    assert not params(do_sample=True, temperature=0).samples


def test_the_line_says_the_range() -> None:
    with pytest.raises(ParameterError, match=r"^top_p=1\.5: give a finite number at least 0 and at most 1$"):
        check_number("top_p", 1.5, 0, 1)
    with pytest.raises(ParameterError, match=r"^n=0: give an integer at least 1$"):
        check_number("n", 0, 1, integer=True)
    with pytest.raises(ParameterError, match=r"^r=0: give a finite number above 0$"):
        check_number("r", 0, 0, above=True)
