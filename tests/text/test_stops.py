"""Stop strings over chunk borders, against a naive search."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm3.errors import ParameterError
from smollm3.text.stops import StopMatcher

LETTERS = st.text(alphabet="ab\n", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


def chunked(text: str, sizes: list[int]) -> list[str]:
    chunks, start = [], 0
    for size in sizes:
        chunks.append(text[start : start + size])
        start += size
    return [*chunks, text[start:]]


def naive(stops: list[str], text: str) -> tuple[str, str | None]:
    """The text before the stop string that is complete first; the longest of those that end there."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(STOPS, LETTERS, st.lists(st.integers(0, 7), max_size=12))
def test_any_chunking_stops_where_a_naive_search_does(stops: list[str], text: str, sizes: list[int]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(chunk) for chunk in chunked(text, sizes)) + matcher.finish()
    assert (shown, matcher.matched) == naive(stops, text)


@given(STOPS, LETTERS)
def test_holds_back_only_what_may_become_a_stop(stops: list[str], text: str) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for end, char in enumerate(text, 1):
        shown += matcher.push(char)
        if matcher.matched:
            return
        held = text[len(shown) : end]
        longest = max(
            (n for n in range(end + 1) for stop in stops if n < len(stop) and text[:end].endswith(stop[:n])),
            default=0,
        )
        assert len(held) == longest


def test_stops_across_a_border_and_says_which() -> None:
    matcher = StopMatcher(["<|im_end|>", "\nUser:"])
    assert matcher.push("Paris.\nUs") == "Paris."
    assert matcher.push("ed to be.\nUser") == "\nUsed to be."
    assert matcher.push(": hello") == ""
    assert matcher.matched == "\nUser:"
    assert matcher.push("more") == ""
    assert matcher.finish() == ""


def test_without_a_match_everything_comes_out() -> None:
    matcher = StopMatcher(["###"])
    assert matcher.push("a ##") == "a "
    assert matcher.finish() == "##"
    assert matcher.matched is None
    assert StopMatcher([]).push("text") == "text"


def test_one_string_is_one_stop() -> None:
    matcher = StopMatcher("END")
    assert matcher.push("the END") == "the "
    assert matcher.stop_strings == ("END",)


@pytest.mark.parametrize("stop", ["", 3, None])
def test_refuses_what_is_no_stop_string(stop: object) -> None:
    with pytest.raises(ParameterError, match="stop string"):
        StopMatcher([stop])  # type: ignore[list-item]


@pytest.mark.parametrize("size", [8, 4096, 1_000_000])
def test_linear_on_text_that_nearly_matches(size: int) -> None:
    text = "a" * 1_000_000
    matcher = StopMatcher(["a" * 5000 + "b", "a" * 999 + "c"])
    start = time.thread_time()
    shown = sum(len(matcher.push(text[i : i + size])) for i in range(0, len(text), size))
    assert time.thread_time() - start < 3
    assert shown + len(matcher.finish()) == len(text)
