"""Prompt lookup: the same ids as without, in fewer steps where text repeats itself."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_runner import FakeRunner, PagedRunner

from smollm3.engine.engine import Engine, Request
from smollm3.engine.lookup import Lookup
from smollm3.engine.params import SamplingParams
from smollm3.engine.sample import TokenOutput
from smollm3.engine.speculation import Guesser, Speculator, StepCosts

PLAIN = SamplingParams(max_new_tokens=40)
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True},
    "top-k": {"do_sample": True, "top_k": 2},
    "top-p": {"do_sample": True, "top_p": 0.3, "temperature": 1.5},
    "min-p": {"do_sample": True, "min_p": 0.3},
    "repetition": {"repetition_penalty": 1.05},
    "presence": {"presence_penalty": 0.3},
    "frequency": {"frequency_penalty": 0.05, "do_sample": True, "top_k": 2},
    "bias": {"logit_bias": {3: 1.5}},
    "bad words": {"bad_words_ids": [[1, 2, 3], [9]]},
    "min new tokens": {"min_new_tokens": 20, "eos_token_ids": frozenset({3, 4})},
    "eos": {"eos_token_ids": frozenset({7})},
    "logprobs": {"logprobs": 2, "output_scores": True, "output_logits": True},
    "one token": {"max_new_tokens": 1},
}


class Circle(PagedRunner):
    """A paged table whose likeliest next id is the last one plus one, most of the time."""

    def logits_after(self, ids: Any) -> torch.Tensor:
        logits = super().logits_after(ids) / 2
        logits[(ids[-1] + 1) % 10] += 0 if sum(ids) % 11 == 0 else 6
        return logits


def run(engine: Engine) -> dict[tuple[int, int], list[TokenOutput]]:
    found: dict[tuple[int, int], list[TokenOutput]] = defaultdict(list)
    while engine.has_work:
        for output in engine.step():
            found[output.request_idx, output.sample_idx].append(output)
    return dict(found)


def eager(engine: Engine) -> Engine:
    """Let the engine guess whatever it finds, as if wider steps cost nothing."""
    for num in (1, 1000):
        engine._speculator.costs.note(num, 1.0)
    engine._speculator.costs.note = lambda num_ids, seconds: None  # type: ignore[method-assign]
    return engine


def same(a: TokenOutput, b: TokenOutput) -> bool:
    for left, right in ((a.scores, b.scores), (a.logits, b.logits)):
        if (left is None) != (right is None) or (left is not None and not torch.equal(left, right)):  # type: ignore[arg-type]
            return False
    return replace(a, num_reused=0) == replace(b, num_reused=0)


@pytest.mark.parametrize("num_blocks", [64, 9])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_gives_the_same_outputs_with_and_without(option: str, num_blocks: int) -> None:
    params = replace(PLAIN, seed=3, **OPTIONS[option])
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3], [5, 6, 5, 6, 5], [4]]
    found = []
    for lookup in (False, True):
        runner = Circle(num_blocks)
        engine = eager(Engine(runner))
        for prompt in prompts:
            engine.add(Request(prompt, replace(params, prompt_lookup=lookup), 2))
        found.append(run(engine))
        assert runner.is_clean
    assert found[0].keys() == found[1].keys()
    for key, outputs in found[0].items():
        assert len(outputs) == len(found[1][key])
        assert all(map(same, outputs, found[1][key])), key
    stats = engine.stats()
    assert stats.accepted_total <= stats.drafted_total
    if option == "greedy":
        assert stats.accepted_total > 50


def test_repetition_takes_far_fewer_steps() -> None:
    steps = []
    for lookup in (False, True):
        engine = eager(Engine(Circle()))
        engine.add(Request([*range(10), 0, 1, 2], replace(PLAIN, max_new_tokens=100, prompt_lookup=lookup)))
        run(engine)
        steps.append(engine.stats().steps_total)
    assert steps[0] == 100
    assert steps[1] < 60


def test_guesses_that_fail_cost_a_bounded_share_of_the_time() -> None:
    """A text in which pairs recur and never go on alike, where each guessed id costs half a step."""
    engine = Engine(FakeRunner(vocab_size=6, context_size=2000, period=1009))
    seconds: list[float] = []
    note = engine._speculator.costs.note

    def measured(num_ids: int, _: float) -> None:
        seconds.append(1 + 0.5 * (num_ids - 1))
        note(num_ids, seconds[-1])

    engine._speculator.costs.note = measured  # type: ignore[method-assign]
    engine.add(Request([1], replace(PLAIN, max_new_tokens=1000, do_sample=True, seed=1, prompt_lookup=True)))
    run(engine)
    assert engine.stats().drafted_total > 5, "it tries again"
    assert sum(seconds) < 1.03 * 1000


def test_a_guess_is_what_followed_the_longest_most_recent_match() -> None:
    lookup = Lookup()
    assert lookup.guess([], 4) == []
    assert lookup.guess([1], 4) == []
    assert lookup.guess([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2) == [9, 2], (
        "three ids match, more than the later two"
    )
    lookup = Lookup()
    assert lookup.guess([2, 3, 9, 2, 3, 8, 2, 3], 1) == [8]
    assert lookup.guess([2, 3, 9, 2, 3, 8, 2, 3, 8, 2], 4) == [3, 8, 2, 3], "a period goes on"


def test_the_length_of_a_draft_follows_its_cost_and_its_chances() -> None:
    speculator, ids = Speculator(), [*range(30), *range(10)]
    assert speculator.draft(Guesser(), ids, 1, 1, 16) == [], (
        "without a measured step there is nothing to compare"
    )
    for num, seconds in ((1, 1.0), (64, 2.0)):
        speculator.costs.note(num, seconds)
    cautious = len(speculator.draft(Guesser(), ids, 1, 1, 16))
    sure = len(speculator.draft(Guesser(right=20, tried=20), ids, 1, 1, 16))
    assert 1 <= cautious < sure == 16
    assert speculator.draft(Guesser(right=0.01, tried=20), ids, 1, 1, 16) == []
    assert speculator.draft(Guesser(credit=0), ids, 1, 1, 16) == []
    assert speculator.draft(Guesser(), ids, 1, 1, 0) == []


def test_guesses_come_back_after_a_bad_moment() -> None:
    speculator, ids = Speculator(), [*range(30), *range(10)]
    for _ in range(3):
        speculator.costs.note(1, 1.0)
    speculator.costs.note(5, 100.0)  # the first pass with a guess, while the machine was taken away
    assert speculator.draft(Guesser(), ids, num_rows=1, num_ids=1, limit=10) == []
    for _ in range(200):
        speculator.costs.note(1, 1.0)
    assert speculator.draft(Guesser(), ids, num_rows=1, num_ids=1, limit=10)


def test_costs_between_two_measurements_lie_on_a_line() -> None:
    costs = StepCosts()
    assert costs.of(3) is None
    for seconds in (1.0, 9.0, 1.2):
        costs.note(1, seconds)
    costs.note(5, 2.2)
    assert costs.of(1) == 1.0
    assert costs.of(3) == pytest.approx(1.6)
    assert costs.of(6) is None
