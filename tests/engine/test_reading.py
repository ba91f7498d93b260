"""What is asked of a prompt itself: scores of its ids and pooled states, beside others, in any pieces."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from fake_runner import FakeRunner, PagedRunner
from torch import Tensor

from smollm3.engine import scheduler
from smollm3.engine.engine import Engine, Request, generate
from smollm3.engine.params import SamplingParams
from smollm3.engine.sample import TokenOutput
from smollm3.errors import ParameterError

GREEDY = SamplingParams(max_new_tokens=4)
SCORED = replace(GREEDY, prompt_logprobs=3)
POOLED = SamplingParams(0, pooling="mean")
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]


def expected_scores(runner: FakeRunner, ids: Sequence[int]) -> Tensor:
    """Log-probabilities [T - 1, V] of every id in each place but the first."""
    return torch.stack(
        [runner.logits_after(ids[:end]).log_softmax(-1) for end in range(1, len(ids))] or [torch.empty(0)]
    )


def check_scores(output: TokenOutput, runner: FakeRunner, ids: Sequence[int], num_top: int) -> None:
    scores, expected = output.prompt_scores, expected_scores(runner, ids)
    assert scores is not None
    of_ids = expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(scores.logprobs, of_ids, atol=1e-5, rtol=0)
    top = expected.topk(num_top)
    torch.testing.assert_close(scores.top_logprobs, top.values, atol=1e-5, rtol=0)
    assert torch.equal(scores.top_ids, top.indices)


@pytest.mark.parametrize("max_step_tokens", [1, 4, 512])
def test_each_sample_has_the_scores_of_the_prompt_with_its_first_id(max_step_tokens: int) -> None:
    runner = FakeRunner()
    engine = Engine(runner, max_step_tokens=max_step_tokens)
    engine.add(Request(PROMPT, SCORED, num_samples=2))
    engine.add(Request(PROMPT[3:], replace(SCORED, prompt_logprobs=0)))
    engine.add(Request([7], GREEDY))
    answers: dict[tuple[int, int], list[TokenOutput]] = {}
    for output in engine.stream():
        answers.setdefault((output.request_idx, output.sample_idx), []).append(output)
    for (request_idx, _), outputs in answers.items():
        ids = (PROMPT, PROMPT[3:], [7])[request_idx]
        assert [output.token_id for output in outputs] == runner.greedy(ids, 4)
        assert all(output.prompt_scores is None for output in outputs[1:])
        if request_idx < 2:
            check_scores(outputs[0], runner, ids, (3, 0)[request_idx])
    assert len(answers) == 4
    assert answers[2, 0][0].prompt_scores is None


def test_without_new_ids_the_scores_are_all() -> None:
    runner = FakeRunner()
    params = replace(SCORED, max_new_tokens=0)
    outputs = list(generate(runner, [Request(PROMPT, params, num_samples=2), Request([7], params)]))
    assert [(o.request_idx, o.sample_idx, o.token_id) for o in outputs] == [
        (0, 0, -1),
        (0, 1, -1),
        (1, 0, -1),
    ]
    assert {output.finish_reason for output in outputs} == {"length"}
    check_scores(outputs[0], runner, PROMPT, 3)
    assert outputs[1].prompt_scores is not None
    only = outputs[2].prompt_scores
    assert only is not None
    assert len(only.logprobs) == 0
    assert runner.slots == {}


def test_a_step_scores_a_bounded_number_of_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "SCORED_LOGITS", 5 * 32)
    runner = FakeRunner()
    engine = Engine(runner)
    for place in range(3):
        engine.add(Request(PROMPT[place:], replace(SCORED, max_new_tokens=0)))
    first = engine.step()
    assert sum(runner.calls[0]) == 5
    outputs = [*first, *engine.stream()]
    assert max(map(sum, runner.calls)) == 5 + 1, "beside them a prompt's last id, which scores nothing"
    for output in outputs:
        check_scores(output, runner, PROMPT[output.request_idx :], 3)
    assert len(outputs) == 3


def test_a_prompt_is_scored_anew_and_others_reuse_it() -> None:
    ids = [place % 7 for place in range(100)]
    runner = PagedRunner()
    plain, scored, again = (
        list(generate(runner, [Request(ids, params)])) for params in (GREEDY, SCORED, GREEDY)
    )
    assert scored[0].num_reused == 0
    check_scores(scored[0], runner, ids, 3)
    assert again[0].num_reused == 96
    assert [o.token_id for o in scored] == [o.token_id for o in plain] == [o.token_id for o in again]
    assert runner.is_clean


def test_nan_in_a_prompt_fails_its_samples_alone() -> None:
    runner = FakeRunner()
    engine = Engine(runner)
    good = engine.add(Request([1], GREEDY))
    runner.table[sum((place + 1) * i for place, i in enumerate(PROMPT[:5])) % 97] = torch.nan
    engine.add(Request(PROMPT, SCORED, num_samples=2))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    failed = [output for output in outputs if output.error is not None]
    assert [output.sample_idx for output in failed] == [0, 1]
    assert "NaN logits in the prompt" in str(failed[0].error)
    assert [o.token_id for o in outputs if o.request_idx == good] == runner.greedy([1], 4)
    assert engine.stats().failed_total == 2
    assert runner.slots == {}


def texts(num: int, length: int) -> list[list[int]]:
    return torch.randint(0, 32, (num, length), generator=torch.Generator().manual_seed(1)).tolist()


def test_texts_are_pooled_in_batches_to_the_bits_of_each_alone() -> None:
    prompts = [*texts(20, 11), *texts(3, 60)]
    runner = FakeRunner()
    engine = Engine(runner, max_step_tokens=64)
    for prompt in prompts:
        engine.add(Request(prompt, POOLED))
    vectors = {output.request_idx: output.vector for output in engine.stream()}
    assert max(map(sum, runner.calls)) == 64
    assert len(runner.calls) == -(-(20 * 11 + 3 * 60) // 64)
    for idx, prompt in enumerate(prompts):
        (alone,) = generate(FakeRunner(), [Request(prompt, POOLED)])
        vector = vectors[idx]
        assert vector is not None
        assert alone.vector is not None
        assert torch.equal(vector, alone.vector)
        assert vector[0] == pytest.approx(sum(prompt) / len(prompt))
        (last,) = generate(FakeRunner(), [Request(prompt, replace(POOLED, pooling="last"))])
        assert last.vector is not None
        assert last.vector[0] == prompt[-1]
    assert runner.slots == {}


def test_who_decodes_or_asks_meanwhile_does_not_wait_for_a_long_batch_of_texts() -> None:
    runner = FakeRunner(context_size=256)
    engine = Engine(runner, max_step_tokens=64)
    talker = engine.add(Request([1], replace(GREEDY, max_new_tokens=40)))
    engine.step()
    batch = [engine.add(Request(text, POOLED)) for text in texts(30, 50)]
    engine.step()
    late = engine.add(Request(PROMPT, GREEDY))
    runner.calls.clear()
    assert {talker, late} < {output.request_idx for output in engine.step()}
    decoding, pooling = runner.calls
    assert decoding == [1, len(PROMPT)]
    assert sum(pooling) == 32 - len(PROMPT), "beside others a step keeps to half of its ids"
    for idx in batch:
        engine.abort(idx)
    assert len(runner.slots) == 2
    assert {output.request_idx for output in engine.stream()} == {talker, late}
    assert runner.slots == {}


def test_texts_that_came_first_get_on_beside_prompts_that_need_less() -> None:
    engine = Engine(FakeRunner(context_size=256), max_step_tokens=64)
    batch = [engine.add(Request(text, POOLED)) for text in texts(4, 50)]
    prompts = [engine.add(Request([seed % 7] * 40, replace(GREEDY, max_new_tokens=1))) for seed in range(40)]
    order = [output.request_idx for output in engine.stream()]
    assert max(order.index(idx) for idx in batch) < order.index(prompts[-10])


def test_a_text_to_pool_finds_and_leaves_nothing_in_the_cache() -> None:
    ids = [place % 5 for place in range(80)]
    runner = PagedRunner()
    (first,), (second,) = (list(generate(runner, [Request(ids, POOLED)])) for _ in range(2))
    assert runner.calls == [[80], [80]]
    assert first.vector is not None
    assert second.vector is not None
    assert torch.equal(first.vector, second.vector)
    answer = list(generate(runner, [Request(ids, GREEDY)]))
    assert answer[0].num_reused == 0
    assert runner.is_clean


def test_a_vector_that_is_no_number_fails_its_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner()
    states_of = runner.states_of
    monkeypatch.setattr(
        runner, "states_of", lambda row: states_of(row) + (torch.nan if 13 in row.token_ids else 0.0)
    )
    engine = Engine(runner)
    for prompt in ([1, 2], [13, 2], [3]):
        engine.add(Request(prompt, POOLED))
    outputs = engine.step()
    assert [output.error is None for output in sorted(outputs, key=lambda o: o.request_idx)] == [
        True, False, True,
    ]  # fmt: skip
    assert not engine.has_work


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": -1, "prompt_logprobs": 1}, "max_new_tokens=-1"),
        ({"prompt_logprobs": -1}, "prompt_logprobs=-1"),
        ({"prompt_logprobs": True}, "prompt_logprobs=True"),
        ({"pooling": "max", "max_new_tokens": 0}, "give mean or last"),
        ({"pooling": "mean"}, "max_new_tokens=0"),
        ({"pooling": "mean", "max_new_tokens": 0, "prompt_logprobs": 1}, "by themselves"),
    ],
)
def test_what_cannot_be_asked_of_a_prompt_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        replace(GREEDY, **changes)  # type: ignore[arg-type]
