"""One answer's ids to deltas: what is hidden, what is cut, what is parsed."""

from pathlib import Path

import pytest
from tiny_models import write_tokenizer
from tokenizers import AddedToken

from smollm3.text.answer import AnswerText
from smollm3.text.parser import Delta, ResponseParser
from smollm3.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    """A tokenizer in which the tags are special tokens, as in some checkpoints."""
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path))
    tokenizer.add_tokens(
        [AddedToken(tag, special=True) for tag in ("<think>", "</think>")], special_tokens=True
    )
    return tokenizer


def deltas_of(answer: AnswerText, tokenizer: Tokenizer, text: str) -> list[Delta]:
    deltas = [delta for token_id in tokenizer.encode(text) for delta in answer.push(token_id)]
    return [*deltas, *answer.finish()]


def joined(deltas: list[Delta], kind: str) -> str:
    return "".join(delta.text for delta in deltas if delta.kind == kind)


def test_tags_that_are_special_tokens_are_read_and_other_special_tokens_hidden(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, parser=ResponseParser())
    deltas = deltas_of(answer, tokenizer, "<think>Hm, Paris.</think>Paris<|end|> it is<|im_end|>")
    assert joined(deltas, "reasoning") == "Hm, Paris."
    assert joined(deltas, "content") == "Paris it is"


def test_without_a_parser_tags_are_hidden_like_all_special_tokens(tokenizer: Tokenizer) -> None:
    text = "<think>Hm</think>Paris<|im_end|>"
    assert joined(deltas_of(AnswerText(tokenizer), tokenizer, text), "content") == "HmParis"
    shown = AnswerText(tokenizer, skip_special_tokens=False)
    assert joined(deltas_of(shown, tokenizer, text), "content") == text


def test_the_id_that_ends_an_answer_is_never_shown(tokenizer: Tokenizer) -> None:
    eos = tokenizer.encode("x")[-1]  # a token that is not special
    answer = AnswerText(tokenizer, eos_token_ids=[eos])
    assert joined([*answer.push(tokenizer.encode("a")[0]), *answer.push(eos)], "content") == "a"


def test_thinking_tells_where_the_text_ends(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, parser=ResponseParser(thinking_open=True))
    assert answer.thinking
    for token_id in tokenizer.encode("well</think>"):
        answer.push(token_id)
    assert not answer.thinking


def test_a_stop_string_over_tokens_ends_the_text(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, stop_strings=["capital of"])
    deltas = deltas_of(answer, tokenizer, "The capital of France")
    assert joined(deltas, "content") == "The "
    assert answer.stop_string == "capital of"


def test_what_is_held_back_comes_at_the_end(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, stop_strings=["capital of Spain"])
    deltas = [delta for token_id in tokenizer.encode("The capital of") for delta in answer.push(token_id)]
    assert joined(deltas, "content") == "The "
    assert joined(answer.finish(), "content") == "capital of"
