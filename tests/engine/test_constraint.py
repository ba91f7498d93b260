"""Constraints: a mask decides what may come, its end ends the sample, a failure is the sample's own."""

from dataclasses import replace
from typing import Self

import numpy as np
import pytest
from fake_runner import FakeRunner
from numpy.typing import NDArray

from smollm3.engine.engine import Engine, Request, generate
from smollm3.engine.params import SamplingParams
from smollm3.engine.sample import TokenOutput
from smollm3.errors import ParameterError

GREEDY = SamplingParams(max_new_tokens=8)
SAMPLED = replace(GREEDY, do_sample=True, seed=3)


class Stairs:
    """Allows only ids of one remainder, the next one each time; complete after `length` ids."""

    def __init__(self, length: int = 100, period: int = 3, num_words: int = 1) -> None:
        self.length, self.period, self.num_words = length, period, num_words
        self.ids: list[int] = []

    @property
    def ended(self) -> bool:
        return len(self.ids) >= self.length

    def mask(self) -> NDArray[np.uint32] | None:
        bits = sum(
            1 << i for i in range(32 * self.num_words) if i % self.period == len(self.ids) % self.period
        )
        return np.array([bits >> 32 * word & 0xFFFFFFFF for word in range(self.num_words)], np.uint32)

    def accept(self, token_id: int) -> None:
        assert token_id % self.period == len(self.ids) % self.period
        self.ids.append(token_id)

    def fork(self) -> Self:
        copy = type(self)(self.length, self.period, self.num_words)
        copy.ids = list(self.ids)
        return copy


class Nothing(Stairs):
    def mask(self) -> NDArray[np.uint32] | None:
        return np.zeros(1, np.uint32) if len(self.ids) == 2 else super().mask()


class Raises(Stairs):
    def mask(self) -> NDArray[np.uint32] | None:
        if len(self.ids) == 2:
            raise KeyError("lost")
        return super().mask()


class RaisesLate(Stairs):
    def accept(self, token_id: int) -> None:
        super().accept(token_id)
        if len(self.ids) == 3:
            raise RuntimeError("lost")


def by_request(outputs: list[TokenOutput]) -> dict[int, list[TokenOutput]]:
    return {idx: [o for o in outputs if o.request_idx == idx] for idx in {o.request_idx for o in outputs}}


def run(engine: Engine) -> list[TokenOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, replace(SAMPLED, top_k=5, top_p=0.9)])
def test_only_allowed_ids_are_chosen_and_the_end_of_the_rule_ends_the_sample(params: SamplingParams) -> None:
    rule = Stairs(length=5)
    outputs = list(generate(FakeRunner(), [Request([1, 2], replace(params, constraint=rule), 3)]))
    for sample_idx in range(3):
        own = [o for o in outputs if o.sample_idx == sample_idx]
        assert [o.token_id % 3 for o in own] == [0, 1, 2, 0, 1]
        assert [o.finish_reason for o in own] == [None] * 4 + ["stop"]
    assert rule.ids == [], "each sample takes a fork"


def test_a_mask_that_is_shorter_than_the_vocabulary_forbids_the_rest_and_a_longer_one_is_cut() -> None:
    runner = FakeRunner(vocab_size=50)
    wide = replace(GREEDY, logit_bias={40: 100.0}, constraint=Stairs(period=1))
    assert all(o.token_id < 32 for o in generate(runner, [Request([1], wide)]))
    assert all(
        o.token_id == 40
        for o in generate(runner, [Request([1], replace(wide, constraint=Stairs(period=1, num_words=3)))])
    )


def test_the_mask_comes_after_bias_and_penalties_and_before_truncation() -> None:
    params = replace(SAMPLED, top_k=1, logit_bias={31: 50.0}, constraint=Stairs())
    ids = [o.token_id for o in generate(FakeRunner(), [Request([1], params)])]
    assert [token_id % 3 for token_id in ids] == [i % 3 for i in range(8)], "31 is allowed at its turn only"
    assert [ids[1], ids[4], ids[7]] == [31, 31, 31]


@pytest.mark.parametrize("rule", [Nothing, Raises, RaisesLate])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_a_constraint_that_fails_fails_its_sample_alone(rule: type[Stairs], params: SamplingParams) -> None:
    runner = FakeRunner()
    engine = Engine(runner)
    bad = engine.add(Request([1], replace(params, constraint=rule())))
    good = engine.add(Request([2], params))
    outputs = by_request(run(engine))
    assert [o.token_id for o in outputs[good]] == [
        o.token_id for o in generate(runner, [Request([2], params)])
    ]
    assert [o.error is None for o in outputs[bad]] == [True, True, False]
    assert isinstance(outputs[bad][-1].error, ParameterError)
    assert runner.slots == {}
    assert engine.stats().failed_total == 1
    with pytest.raises(ParameterError, match="at token 2"):
        list(generate(runner, [Request([1], replace(params, constraint=rule()))]))
