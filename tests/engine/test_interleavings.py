"""Random orders of add, abort and step: no block is lost, and who stays answers as if alone."""

from dataclasses import replace
from typing import Any

from fake_runner import FakeRunner, PagedRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.engine.engine import Engine, Request
from smollm3.engine.params import SamplingParams
from smollm3.engine.sample import TokenOutput

PARAMS = SamplingParams(max_new_tokens=12, eos_token_ids=frozenset({5}))
READS: list[dict[str, Any]] = [
    {},
    {"prompt_logprobs": 1},
    {"prompt_logprobs": 0, "max_new_tokens": 0},
    {"pooling": "mean", "max_new_tokens": 0},
    {"pooling": "last", "max_new_tokens": 0},
]
REQUESTS = st.builds(
    Request,
    st.lists(st.integers(0, 2), min_size=1, max_size=60),
    st.builds(
        lambda seed, do_sample, lookup, reads: replace(
            PARAMS, seed=seed, do_sample=do_sample, prompt_lookup=lookup, **reads
        ),
        st.integers(0, 3),
        st.booleans(),
        st.booleans(),
        st.sampled_from(READS),
    ),
    st.integers(1, 3),
    st.sampled_from(["", "a"]),
)
Told = tuple[int, list[float], list[float]]  # of an output: its id, scores of the prompt, vector


def told(output: TokenOutput) -> Told:
    scores, vector = output.prompt_scores, output.vector
    return (
        output.token_id,
        [] if scores is None else [*scores.logprobs.tolist(), *scores.top_logprobs.flatten().tolist()],
        [] if vector is None else vector.tolist(),
    )


MOVES = st.lists(
    st.one_of(
        REQUESTS,
        st.integers(1, 4),  # steps
        st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 2))),  # aborts
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(MOVES, st.integers(6, 30), st.sampled_from([7, 64, 512]))
def test_nothing_leaks_and_answers_do_not_depend_on_the_crowd(
    moves: list[Request | int | tuple[int, int | None]], num_blocks: int, max_step_tokens: int
) -> None:
    runner = PagedRunner(num_blocks)
    engine = Engine(runner, max_step_tokens=max_step_tokens, max_num_samples=7)
    for num in (1, 1000):
        engine._speculator.costs.note(num, 1.0)
    requests: list[Request] = []
    answers: dict[tuple[int, int], list[Told]] = {}
    ended: set[tuple[int, int]] = set()
    aborted: set[tuple[int, int]] = set()

    def step() -> None:
        for output in engine.step():
            key = output.request_idx, output.sample_idx
            assert key not in ended | aborted
            answers.setdefault(key, []).append(told(output))
            if output.finish_reason:
                ended.add(key)

    for move in moves:
        if isinstance(move, Request):
            requests.append(move)
            engine.add(move)
        elif isinstance(move, int):
            for _ in range(move):
                step()
        else:
            engine.abort(*move)
            aborted |= {(move[0], sample) for sample in range(3) if move[1] in (None, sample)}
            aborted = {key for key in aborted if key[0] < len(requests)}
    for _ in range(2000):
        if not engine.has_work:
            break
        step()
    assert not engine.has_work
    assert runner.is_clean
    for idx, request in enumerate(requests):
        plain = FakeRunner(context_size=256)
        lonely = Engine(plain)
        lonely.add(replace(request, params=replace(request.params, prompt_lookup=False)))
        expected: dict[int, list[Told]] = {}
        for output in lonely.stream():
            expected.setdefault(output.sample_idx, []).append(told(output))
        for sample_idx, whole in expected.items():
            found = answers.get((idx, sample_idx), [])
            assert found == (whole[: len(found)] if (idx, sample_idx) in aborted else whole)
