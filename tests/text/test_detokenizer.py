"""Streaming equals decoding at once, gives text as early as it can, and costs the same for every token."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_corpus import FAMILY, TORTURE, write_folder

from smollm3.text.detokenizer import Detokenizer
from smollm3.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("tokenizer")))


def stream(tokenizer: Tokenizer, ids: list[int], skip_special_tokens: bool = False) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("name", TORTURE)
def test_pieces_are_the_text_and_never_broken(tokenizer: Tokenizer, name: str) -> None:
    text = TORTURE[name]
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert pieces[-1] == ""
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


@settings(deadline=None)
@given(st.lists(st.integers(0, 870), max_size=60), st.booleans())
def test_any_ids_stream_to_what_decode_gives(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_text_comes_as_soon_as_its_bytes_are_there(tokenizer: Tokenizer, text: str) -> None:
    detokenizer, seen, so_far = Detokenizer(tokenizer), b"", ""
    for token_id in tokenizer.encode(text):
        seen += tokenizer.token_bytes(token_id)
        so_far += detokenizer.push(token_id)
        assert so_far == seen.decode("utf-8", "ignore")


def test_a_character_over_several_tokens_comes_once(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_to_id(token) for token in ["ð", "Ł", "ĳ", "©"]]  # the four bytes of U+1F469
    assert None not in ids
    assert stream(tokenizer, ids) == ["", "", "", "\U0001f469", ""]
    assert stream(tokenizer, ids[:3]) == ["", "", "", "\ufffd"]
    assert stream(tokenizer, [*ids[:2], *tokenizer.encode("a")]) == ["", "", "\ufffda", ""]


def test_special_tokens_are_shown_or_skipped(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"<think>{FAMILY}</think><|im_end|>")
    assert "".join(stream(tokenizer, ids)) == f"<think>{FAMILY}</think><|im_end|>"
    assert "".join(stream(tokenizer, ids, skip_special_tokens=True)) == f"<think>{FAMILY}</think>"


def test_finish_makes_it_ready_again(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(tokenizer.get_vocab()["ð"]) == ""
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""
    assert "".join(detokenizer.push(token_id) for token_id in tokenizer.encode("again")) == "again"


def test_the_last_token_costs_what_the_first_does(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TORTURE["emoji"] + TORTURE["code"]) * 400
    detokenizer = Detokenizer(tokenizer)

    def seconds(part: list[int]) -> float:
        start = time.thread_time()
        for token_id in part:
            detokenizer.push(token_id)
        return time.thread_time() - start

    fifth = len(ids) // 5
    times = [seconds(ids[k * fifth : (k + 1) * fifth]) for k in range(5)]
    assert min(times[3:]) < 5 * min(times[:2])
    assert sum(times) / len(ids) < 1e-4
