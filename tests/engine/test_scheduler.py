"""Who gets which share of a step: short prompts beside long ones, a cache that fills up, pasts."""

import time
from collections import defaultdict
from dataclasses import replace

import pytest
from fake_runner import FakeRunner, PagedRunner

from smollm3.engine.engine import Engine, Request
from smollm3.engine.params import SamplingParams
from smollm3.engine.sample import TokenOutput
from smollm3.engine.scheduler import prompt_shares
from smollm3.errors import ContextOverflowError

GREEDY = SamplingParams(max_new_tokens=8)
SAMPLED = SamplingParams(max_new_tokens=40, do_sample=True, seed=5)


def prompt(length: int, seed: int = 0) -> list[int]:
    return [(seed * 7 + place * place * 5 + place) % 31 + 1 for place in range(length)]


def run(engine: Engine) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            found[output.request_idx, output.sample_idx].append(output.token_id)
    return dict(found)


def alone(request: Request) -> dict[int, list[int]]:
    engine = Engine(FakeRunner(context_size=5000))
    engine.add(request)
    return {sample_idx: ids for (_, sample_idx), ids in run(engine).items()}


@pytest.mark.parametrize(
    ("wanted", "budget", "shares"),
    [
        ([4000, 100], 512, [412, 100]),
        ([4000, 900, 300], 512, [128, 84, 300]),
        ([128, 128, 128], 200, [128, 72, 0]),
        ([60, 200, 59], 80, [21, 0, 59]),
        ([5, 5, 5], 100, [5, 5, 5]),
        ([9, 9, 9, 9], 2, [2, 0, 0, 0]),
        ([], 10, []),
    ],
)
def test_most_of_a_step_goes_to_the_shortest_prompts_and_a_quarter_to_the_oldest(
    wanted: list[int], budget: int, shares: list[int]
) -> None:
    assert prompt_shares(wanted, budget) == shares


@pytest.mark.parametrize("busy", [False, True])
def test_a_short_prompt_has_its_first_token_within_three_steps_of_a_long_ones_prefill(busy: bool) -> None:
    runner = FakeRunner(context_size=5000)
    engine = Engine(runner)
    decoding = set()
    if busy:
        decoding = {engine.add(Request([seed + 1], replace(GREEDY, max_new_tokens=50))) for seed in range(3)}
        engine.step()
    engine.add(Request(prompt(4096), GREEDY))
    engine.step()
    short = engine.add(Request(prompt(200, seed=1), GREEDY))
    num_steps, outputs = 0, engine.step()[:0]
    while short not in {output.request_idx for output in outputs}:
        outputs = engine.step()
        num_steps += 1
        assert decoding <= {output.request_idx for output in outputs}, "who decodes has a token in every step"
    assert num_steps <= 3
    assert max(sum(call) for call in runner.calls) <= 512


def test_requests_are_admitted_in_their_order() -> None:
    engine = Engine(FakeRunner(context_size=500), max_num_samples=2)
    for idx in range(6):
        engine.add(Request(prompt(5 + 50 * (idx % 2), seed=idx), replace(GREEDY, max_new_tokens=3 + idx)))
    firsts: list[int] = []
    while engine.has_work:
        firsts += [o.request_idx for o in engine.step() if o.request_idx not in firsts]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("params", [replace(GREEDY, max_new_tokens=40), SAMPLED])
@pytest.mark.parametrize("num_blocks", [5, 7, 12])
def test_a_full_cache_preempts_the_newest_and_no_answer_changes(
    num_blocks: int, params: SamplingParams
) -> None:
    runner = PagedRunner(num_blocks)
    engine = Engine(runner, max_step_tokens=64)
    requests = [Request(prompt(20, seed), replace(params, seed=seed), 1 + seed % 2) for seed in range(5)]
    for request in requests:
        engine.add(request)
    found = run(engine)
    for idx, request in enumerate(requests):
        assert {s: found[idx, s] for s in range(request.num_samples)} == alone(request)
    assert engine.stats().preemptions_total > 0 or num_blocks == 12
    assert runner.is_clean


def test_the_oldest_request_is_never_preempted() -> None:
    engine = Engine(PagedRunner(6))
    first = engine.add(Request(prompt(30), replace(GREEDY, max_new_tokens=60)))
    for seed in range(1, 4):
        engine.add(Request(prompt(30, seed), replace(GREEDY, max_new_tokens=60)))
    steps = 0
    outputs: list[TokenOutput] = []
    while not any(o.request_idx == first and o.finish_reason for o in outputs):
        outputs = engine.step()
        steps += 1
    assert steps == 60, "it has a token in every step"
    assert engine.stats().preemptions_total > 0
    run(engine)


def test_what_can_never_fit_is_refused_with_both_numbers() -> None:
    engine = Engine(PagedRunner(num_blocks=4))
    with pytest.raises(
        ContextOverflowError, match=r"prompt of 60 ids .* needs 67 tokens of KV cache, which has 64"
    ):
        engine.add(Request(prompt(60), GREEDY))
    engine.add(Request(prompt(57), GREEDY))
    assert len(run(engine)[0, 0]) == 8


def test_a_prompt_that_came_before_is_taken_from_the_cache_and_the_last_id_is_computed() -> None:
    runner = PagedRunner(32)
    engine = Engine(runner)
    request = Request(prompt(100), GREEDY)
    engine.add(request)
    first = run(engine)
    runner.calls.clear()
    engine.add(request)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert [o.token_id for o in outputs] == first[0, 0]
    assert {o.num_reused for o in outputs} == {96}
    assert runner.calls[0] == [4], "a part of less than eight ids is not worth a copy"
    stats = engine.stats()
    assert (stats.prompt_ids_total, stats.prompt_ids_reused_total) == (200, 96)
    engine.add(replace(request, salt="other"))
    assert all(o.num_reused == 0 for o in engine.step())


@pytest.mark.parametrize(("ms_per_id", "most"), [(0.1, 256), (4.0, 125 - 1), (100.0, 64)])
def test_a_prompt_takes_steps_of_half_a_second_beside_an_answer(
    ms_per_id: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = FakeRunner(context_size=2000)
    monkeypatch.setattr(time, "perf_counter", lambda: sum(map(sum, runner.calls)) * ms_per_id / 1000)
    engine = Engine(runner)
    engine.add(Request(prompt(100), replace(GREEDY, max_new_tokens=50)))
    engine.step()
    engine.add(Request(prompt(700), GREEDY))
    run(engine)
    assert max(ids for answer, *prompts in runner.calls[1:] for ids in prompts) == most


@pytest.mark.parametrize(
    ("lengths", "num_ids", "answered"),
    [
        ([20], 125, 1),
        ([30, 40], 125, 2),
        ([50, 60], 125, 1),  # a quarter is the long one's
        ([300], 512, 1),  # a quick step would not hold it
        ([90] * 9, 125, 1),
        ([200] * 9, 512, 1),
        ([500] * 9, 512, 0),
    ],
)
def test_a_short_prompt_beside_a_long_one_has_its_first_token_after_a_quick_step(
    lengths: list[int], num_ids: int, answered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = FakeRunner(context_size=5000)
    monkeypatch.setattr(time, "perf_counter", lambda: sum(map(sum, runner.calls)) * 0.004)
    engine = Engine(runner)
    engine.add(Request(prompt(4000), GREEDY))
    engine.step()
    short = [engine.add(Request(prompt(length, seed + 1), GREEDY)) for seed, length in enumerate(lengths)]
    outputs = engine.step()
    assert sum(runner.calls[-1]) == num_ids  # 4 ms an id: half a second, or the whole step
    assert [output.request_idx for output in outputs] == short[:answered]


def test_of_prompts_that_come_together_the_first_is_answered_first_and_a_long_one_gets_on() -> None:
    engine = Engine(FakeRunner(context_size=5000))
    long = engine.add(Request(prompt(2000), GREEDY))
    for seed in range(40):
        engine.add(Request(prompt(300, seed + 1), GREEDY))
    order: list[int] = []
    while engine.has_work:
        order += [output.request_idx for output in engine.step() if output.request_idx not in order]
    assert [idx for idx in order if idx != long] == list(range(1, 41))
    assert 5 < order.index(long) < 30, "a quarter of each step was its own"


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    runner = PagedRunner(64)
    engine = Engine(runner, max_step_tokens=32)
    shared = prompt(128)
    for seed in range(6):
        engine.add(Request([*shared, seed + 1], replace(GREEDY, max_new_tokens=4)))
    engine.add(Request(prompt(10, seed=3), GREEDY))
    found = run(engine)
    assert sum(sum(call) for call in runner.calls) < 129 + 5 * 64 + 10 + 8 * 4, (
        "less than 64 ids are not waited for"
    )
    assert found[5, 0] == alone(Request([*shared, 6], replace(GREEDY, max_new_tokens=4)))[0]
    assert runner.is_clean


def test_cancelling_frees_in_the_queue_in_prefill_and_in_decode() -> None:
    runner = PagedRunner(16)
    engine = Engine(runner, max_num_samples=2, max_step_tokens=16)
    decoding = engine.add(Request(prompt(3), replace(GREEDY, max_new_tokens=50)))
    engine.step()
    filling = engine.add(Request(prompt(100), GREEDY))
    queued = engine.add(Request(prompt(5), GREEDY))
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (2, 1)
    engine.abort(queued)
    assert (engine.stats().num_running, engine.stats().num_waiting) == (2, 0)
    used = runner.cache_tokens_used
    engine.abort(filling)
    assert runner.cache_tokens_used < used
    engine.abort(decoding)
    assert runner.is_clean
    assert not engine.has_work
