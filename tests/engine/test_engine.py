"""The decode loop on a table of known answers: joining, leaving, forking, chunks, cancelling and refusals."""

import gc
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import torch
from fake_runner import FakeRunner
from torch import Tensor

from smollm3.engine.engine import Engine, Request, generate
from smollm3.engine.params import SamplingParams
from smollm3.engine.runner import Row
from smollm3.engine.sample import TokenOutput
from smollm3.errors import ContextOverflowError, ParameterError, PromptError

GREEDY = SamplingParams(max_new_tokens=8)
SAMPLED = SamplingParams(max_new_tokens=8, do_sample=True, seed=5)


def ids_of(outputs: Iterable[TokenOutput]) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for output in outputs:
        found[output.request_idx, output.sample_idx].append(output.token_id)
    return dict(found)


def test_a_batch_of_prompts_gives_each_its_own_greedy_answer_and_frees_its_slots() -> None:
    runner = FakeRunner()
    prompts = [[1], [2, 3, 4], [5, 6], list(range(20))]
    outputs = list(generate(runner, [Request(prompt, GREEDY) for prompt in prompts]))
    assert ids_of(outputs) == {(i, 0): runner.greedy(prompt, 8) for i, prompt in enumerate(prompts)}
    assert runner.slots == {}
    assert runner.calls[0] == [1, 3, 2, 20]
    assert runner.calls[1:] == [[1, 1, 1, 1]] * 7
    reasons = [output.finish_reason for output in outputs]
    assert reasons == [None] * 28 + ["length"] * 4


def test_requests_join_and_leave_between_steps() -> None:
    runner = FakeRunner()
    engine = Engine(runner)
    first = engine.add(Request([1, 2], GREEDY))
    outputs = engine.step() + engine.step()
    second = engine.add(Request([9, 9, 9], replace(GREEDY, max_new_tokens=2)))
    outputs += engine.step()
    assert runner.calls == [[2], [1], [1, 3]]
    while engine.has_work:
        outputs += engine.step()
    assert ids_of(outputs) == {
        (first, 0): runner.greedy([1, 2], 8),
        (second, 0): runner.greedy([9, 9, 9], 2),
    }
    assert engine.step() == []


def test_any_of_several_eos_ids_ends_a_row_and_is_part_of_it() -> None:
    runner = FakeRunner()
    answer = runner.greedy([3, 1], 8)
    third = answer[2]
    assert third not in answer[:2]
    params = replace(GREEDY, eos_token_ids=frozenset({third, 31_000}))
    outputs = list(generate(runner, [Request([3, 1], params)]))
    assert [output.token_id for output in outputs] == answer[:3]
    assert outputs[-1].finish_reason == "stop"


def test_min_new_tokens_holds_eos_back() -> None:
    runner = FakeRunner()
    answer = runner.greedy([3, 1], 8)
    params = replace(GREEDY, eos_token_ids=frozenset(answer[:1]), min_new_tokens=4)
    outputs = [output.token_id for output in generate(runner, [Request([3, 1], params)])]
    assert len(outputs) >= 5
    assert answer[0] not in outputs[:4]


@pytest.mark.parametrize("max_step_tokens", [1, 3, 7, 4096])
def test_a_long_prompt_taken_in_by_chunks_gives_the_same_answer(max_step_tokens: int) -> None:
    runner = FakeRunner()
    engine = Engine(runner, max_step_tokens=max_step_tokens)
    prompts = [list(range(11)), [4, 4], list(range(5, 25))]
    for prompt in prompts:
        engine.add(Request(prompt, GREEDY, num_samples=2))
    found = ids_of(engine.stream())
    assert found == {(i, s): runner.greedy(prompt, 8) for i, prompt in enumerate(prompts) for s in (0, 1)}
    prefilled = [sum(num for num in call if num > 1) for call in runner.calls]
    assert max(prefilled) <= max_step_tokens
    assert runner.slots == {}


def test_the_number_of_running_samples_is_bounded_and_all_get_their_turn() -> None:
    runner = FakeRunner()
    engine = Engine(runner, max_num_samples=2)
    for prompt in ([1], [2], [3], [4], [5]):
        engine.add(Request(prompt, GREEDY))
    found = ids_of(engine.stream())
    assert max(len(call) for call in runner.calls) == 2
    assert found == {(i, 0): runner.greedy([i + 1], 8) for i in range(5)}


def test_samples_of_a_request_share_one_prefill_and_differ() -> None:
    runner = FakeRunner()
    found = ids_of(generate(runner, [Request([1, 2, 3], SAMPLED, num_samples=5)]))
    assert runner.calls[0] == [3]
    assert runner.calls[1] == [1] * 5
    assert len({tuple(ids) for ids in found.values()}) > 1
    alone = ids_of(generate(runner, [Request([1, 2, 3], SAMPLED)]))
    assert alone[0, 0] == found[0, 0], "the first of n samples is the one that a single sample gives"


def test_seeded_answers_do_not_depend_on_the_batch_nor_on_when_a_request_joins() -> None:
    runner = FakeRunner()
    request = Request([1, 2, 3], replace(SAMPLED, top_p=0.9, temperature=1.3))
    alone = ids_of(generate(runner, [request]))[0, 0]
    others = [
        Request([7, 7], replace(SAMPLED, top_k=3, seed=99)),
        Request([8], GREEDY),
        Request([1, 2, 3], replace(request.params, seed=6)),
    ]
    crowd = ids_of(generate(runner, [*others, request, *others]))
    assert crowd[3, 0] == alone
    assert crowd[2, 0] != alone
    engine = Engine(runner, max_step_tokens=2)
    for other in others:
        engine.add(other)
    engine.step()
    late = engine.add(request)
    assert ids_of(engine.stream())[late, 0] == alone


def test_without_a_seed_the_global_generator_decides() -> None:
    runner = FakeRunner()
    request = Request([1], replace(SAMPLED, seed=None, max_new_tokens=20))
    torch.manual_seed(3)
    first, second = (list(generate(runner, [request])) for _ in range(2))
    torch.manual_seed(3)
    again = list(generate(runner, [request]))
    assert first == again
    assert first != second


def test_closing_the_iterator_cancels_and_frees() -> None:
    runner = FakeRunner()
    stream = generate(runner, [Request([1], GREEDY, num_samples=3), Request([2], GREEDY)])
    next(stream)
    assert len(runner.slots) == 4
    stream.close()  # type: ignore[attr-defined]
    assert runner.slots == {}
    with pytest.raises(StopIteration):
        next(stream)
    for _ in generate(runner, [Request([1], GREEDY)]):
        break
    gc.collect()
    assert runner.slots == {}


def test_a_failing_forward_frees_the_slots() -> None:
    runner = FakeRunner()
    stream = generate(runner, [Request([1], GREEDY), Request([2], GREEDY)])
    next(stream)
    next(stream)
    runner.table = runner.table[:0]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert runner.slots == {}


def test_abort_drops_one_sample_or_the_whole_request_and_the_rest_goes_on() -> None:
    runner = FakeRunner()
    engine = Engine(runner)
    kept = engine.add(Request([1], GREEDY))
    gone = engine.add(Request([2], GREEDY, num_samples=3))
    engine.step()
    assert len(runner.slots) == 4
    engine.abort(gone, 1)
    assert len(runner.slots) == 3
    assert {(o.request_idx, o.sample_idx) for o in engine.step()} == {(kept, 0), (gone, 0), (gone, 2)}
    engine.abort(gone)
    engine.abort(gone)
    assert {o.request_idx for o in engine.step()} == {kept}
    engine.abort(kept)
    assert not engine.has_work
    assert runner.slots == {}


def test_abort_before_and_during_prefill_lets_the_other_samples_inherit() -> None:
    runner = FakeRunner()
    engine = Engine(runner, max_step_tokens=2)
    waiting = engine.add(Request([5, 5], SAMPLED, num_samples=3))
    engine.abort(waiting, 0)
    engine.abort(waiting, 2)
    partly = engine.add(Request([1, 2, 3, 4, 5], SAMPLED, num_samples=2))
    never = engine.add(Request([6], SAMPLED))
    engine.abort(never)
    outputs = engine.step() + engine.step()
    engine.abort(partly, 0)
    found = ids_of([*outputs, *engine.stream()])
    assert set(found) == {(waiting, 1), (partly, 1)}
    whole = ids_of(generate(runner, [Request([1, 2, 3, 4, 5], SAMPLED, num_samples=2)]))
    assert found[partly, 1] == whole[0, 1]
    assert runner.slots == {}


def test_overflowing_the_context_is_refused_before_anything_runs_with_both_numbers() -> None:
    runner = FakeRunner(context_size=16)
    with pytest.raises(
        ContextOverflowError, match=r"prompt of 10 ids \+ max_new_tokens=8 = 18 .* context of 16"
    ):
        generate(runner, [Request([1], GREEDY), Request([1] * 10, GREEDY)])
    assert runner.num_opened == 0
    assert len(list(generate(runner, [Request([1] * 8, GREEDY)]))) == 8


@pytest.mark.parametrize("ids", [[], [32], [-1], [True], [1.0], ["1"], [None]])
def test_prompts_of_anything_but_ids_are_refused(ids: list[int]) -> None:
    with pytest.raises(PromptError):
        generate(FakeRunner(), [Request(ids, GREEDY)])


@pytest.mark.parametrize("num", [0, -1, 10**9, 1.5, "2", True, None])
def test_numbers_of_samples_are_checked(num: int) -> None:
    with pytest.raises(ParameterError, match="num_return_sequences"):
        generate(FakeRunner(), [Request([1], GREEDY, num_samples=num)])


def test_ids_outside_of_the_vocabulary_are_refused_where_they_would_act() -> None:
    for params in (replace(GREEDY, logit_bias={32: 1.0}), replace(GREEDY, bad_words_ids=[[1], [2, 32]])):
        with pytest.raises(ParameterError, match="id 32"):
            generate(FakeRunner(), [Request([1], params)])


def test_logits_that_leave_nothing_to_choose_are_an_error_not_a_guess() -> None:
    runner = FakeRunner(vocab_size=4)
    everything = replace(GREEDY, bad_words_ids=[[0], [1], [2], [3]])
    for params in (everything, replace(everything, do_sample=True)):
        with pytest.raises(ParameterError, match="no id is left"):
            list(generate(runner, [Request([1], params)]))
    runner.table[:] = torch.nan
    with pytest.raises(ParameterError, match="NaN"):
        list(generate(runner, [Request([1], GREEDY)]))
    assert runner.slots == {}


def test_outputs_carry_what_was_asked_for_and_nothing_else() -> None:
    runner = FakeRunner()
    plain = replace(GREEDY, max_new_tokens=1)
    asked = replace(plain, logprobs=3, output_scores=True, output_logits=True, logit_bias={4: 50.0})
    first, second, third = generate(
        runner, [Request([1], plain), Request([1], asked), Request([1], replace(plain, logprobs=0))]
    )
    assert (first.logprob, first.top_logprobs, first.scores, first.logits) == (None, None, None, None)
    raw = runner.logits_after([1])
    assert second.token_id == 4
    assert second.logits is not None
    assert second.scores is not None
    torch.testing.assert_close(second.logits, raw)
    assert second.scores[4] == raw[4] + 50
    expected = raw.log_softmax(-1)
    assert second.logprob == pytest.approx(float(expected[4]), abs=1e-5)
    assert second.top_logprobs is not None
    assert [i for i, _ in second.top_logprobs] == raw.topk(3).indices.tolist()
    assert [p for _, p in second.top_logprobs] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-5)
    assert third.logprob == pytest.approx(float(expected.max()), abs=1e-5)
    assert third.top_logprobs == ()


def test_a_step_costs_little_beside_the_model() -> None:
    runner = FakeRunner(vocab_size=8, context_size=2000)
    times = []
    for _ in range(3):
        start = time.process_time()
        list(generate(runner, [Request([1], replace(GREEDY, max_new_tokens=100))]))
        times.append((time.process_time() - start) / 100)
    assert min(times) < 5e-3  # measured: 0.1 ms


def test_stats_tell_the_processor_time_of_model_and_sampling() -> None:
    class Slow(FakeRunner):
        def forward(self, rows: Sequence[Row]) -> Tensor:
            until = time.thread_time() + 0.01
            while time.thread_time() < until:
                pass
            return super().forward(rows)

    engine = Engine(Slow())
    engine.add(Request([1, 2, 3], SamplingParams(5)))
    list(engine.stream())
    stats = engine.stats()
    assert stats.forward_cpu_seconds_total >= 0.05
    assert 0 < stats.sampling_cpu_seconds_total < stats.forward_cpu_seconds_total


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, replace(SAMPLED, top_p=0.9, top_k=9, min_p=0.01)])
def test_logits_that_are_not_finite_fail_their_sample_alone(params: SamplingParams) -> None:
    class Broken(FakeRunner):
        def logits_after(self, ids: Sequence[int]) -> Tensor:
            logits = super().logits_after(ids)
            return logits * torch.nan if ids[0] == 1 and len(ids) == 4 else logits

    runner = Broken()
    engine = Engine(runner)
    bad, good = engine.add(Request([1, 2], params)), engine.add(Request([2, 2], params))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert [o.token_id for o in outputs if o.request_idx == good] == [
        o.token_id for o in generate(runner, [Request([2, 2], params)])
    ]
    failed = [o for o in outputs if o.request_idx == bad]
    assert [o.error is not None for o in failed] == [False, False, True]
    assert "NaN" in str(failed[-1].error)
    assert runner.slots == {}
