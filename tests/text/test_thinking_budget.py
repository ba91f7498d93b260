"""Thoughts closed when their budget is used up: tags in each form, with and without a grammar."""

import random
from typing import Any

import pytest

from smollm3.errors import ParameterError
from smollm3.text.grammar import GrammarCompiler
from smollm3.text.parser import parse
from smollm3.text.thinking_budget import ThinkingBudget
from smollm3.text.tokenizer import Tokenizer
from tests.text.grammar_walks import allowed_ids, trained_tokenizer


@pytest.fixture(scope="module", params=["tags", "plain"])
def tokenizer(request: pytest.FixtureRequest, small_model: Any) -> Tokenizer:
    if request.param == "tags":
        return trained_tokenizer(special_tags=True)
    from smollm3.tokenization import SmolLM3Tokenizer

    return SmolLM3Tokenizer.from_pretrained(small_model)


def answer(constraint: Any, tokenizer: Tokenizer, wish: str, *, num_ids: int = 60) -> str:
    """The text of a model that goes on with `wish` whenever it is free to."""
    ids = tokenizer.encode(wish, add_special_tokens=False)
    chosen: list[int] = []
    for _ in range(num_ids):
        mask = constraint.mask()
        allowed = None if mask is None else set(allowed_ids(mask).tolist())
        if allowed is not None and len(allowed) == 1:
            chosen += allowed
        elif ids and (allowed is None or ids[0] in allowed):
            chosen.append(ids.pop(0))
        else:
            break
        constraint.accept(chosen[-1])
        if constraint.ended:
            break
    return tokenizer.decode(chosen)


@pytest.mark.parametrize(
    ("budget", "thinking_open", "wish", "expected"),
    [
        (3, True, "a b c d e f", "a b c\n</think>\n d e f"),
        (0, True, "Hello", "\n</think>\nHello"),
        (2, False, "<think>a b c d", "<think>a b\n</think>\n c d"),
        (2, False, "\n<think>\n b c d", "\n<think>\n b\n</think>\n c d"),
        (0, False, "<think>a", "<think>\n</think>\na"),
        (9, True, "a b</think>\nc d e f g h i j k l", "a b</think>\nc d e f g h i j k l"),
        (2, False, "words first <think> a b c", "words first <think> a b c"),
        (1, False, "<thin> a b c d", "<thin> a b c d"),
        (3, False, "<think>a</think><think>b c d", "<think>a</think><think>b\n</think>\n c d"),
    ],
)
def test_known_answers(
    tokenizer: Tokenizer, budget: int, thinking_open: bool, wish: str, expected: str
) -> None:
    constraint = ThinkingBudget(tokenizer, budget, thinking_open)
    text = answer(constraint, tokenizer, wish)
    if "</think><think>" in wish:  # the tags' own ids count where they are several
        assert text.startswith("<think>a")
        assert parse(text, code=False).reasoning.startswith("a")
        assert text.endswith("c d")
    else:
        assert text == expected
    assert not constraint.ended


def test_a_tag_that_is_begun_is_completed(small_model: Any) -> None:
    from smollm3.tokenization import SmolLM3Tokenizer

    tokenizer = SmolLM3Tokenizer.from_pretrained(small_model)
    begun = len(tokenizer.encode_plain("a b</"))
    assert answer(ThinkingBudget(tokenizer, begun, True), tokenizer, "a b</ c") == "a b</think>\n c"


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_grammar_goes_on_after_the_thoughts(tokenizer: Tokenizer, budget: int) -> None:
    eos = tokenizer.eos_token_id or 0
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [eos])
    rng = random.Random(budget)
    for thinking in ("open", "optional") * 4:
        inner = compiler.regex('\\{"a": [0-9]{2}\\}', thinking=thinking)  # type: ignore[arg-type]
        constraint = ThinkingBudget(tokenizer, budget, thinking == "open", inner)
        chosen: list[int] = []
        while not constraint.ended:
            if rng.random() < 0.3:
                constraint = constraint.fork()
            allowed = allowed_ids(constraint.mask()).tolist()
            assert allowed
            chosen.append(rng.choice(allowed))
            constraint.accept(chosen[-1])
            assert len(chosen) < 100
        text = tokenizer.decode([token_id for token_id in chosen if token_id != eos])
        parsed = parse(text, thinking_open=thinking == "open")
        assert parsed.content[:6] == '{"a": '
        # A character of several ids is never cut: up to three more bytes.
        assert len(tokenizer.encode_plain(parsed.reasoning)) <= 4 * budget + 12
        b"".join(map(tokenizer.token_bytes, chosen)).decode("utf-8")


def test_a_character_is_not_cut_in_the_middle(tokenizer: Tokenizer) -> None:
    eos = tokenizer.eos_token_id or 0
    inner = GrammarCompiler(tokenizer, len(tokenizer), [eos]).regex("ok", thinking="open")
    rare = "\U00013000"
    budget = len(tokenizer.encode_plain(rare)) - 1
    assert budget > 1
    constraint = ThinkingBudget(tokenizer, budget, True, inner)
    assert answer(constraint, tokenizer, f"{rare} and moreok").startswith(f"{rare}\n</think>\n")


def test_forks_count_for_themselves(tokenizer: Tokenizer) -> None:
    one = ThinkingBudget(tokenizer, 2, True)
    other = one.fork()
    assert answer(one, tokenizer, "a b c") == "a b\n</think>\n c"
    assert answer(other, tokenizer, "d e f") == "d e\n</think>\n f"


@pytest.mark.parametrize("budget", [-1, 1.5, True, "3"])
def test_wrong_budgets(tokenizer: Tokenizer, budget: Any) -> None:
    with pytest.raises(ParameterError, match="whole number"):
        ThinkingBudget(tokenizer, budget, True)


def test_another_id_than_the_forced_one_is_an_error(tokenizer: Tokenizer) -> None:
    constraint = ThinkingBudget(tokenizer, 0, True)
    constraint.mask()
    with pytest.raises(ParameterError, match="closes the thoughts"):
        constraint.accept(0)
