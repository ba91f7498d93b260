"""Scores of prompts by each runner: those of a plain forward pass, and natively the same bits in company."""

import pytest
import torch
from tiny_models import tiny_model

from smollm3.engine import scheduler
from smollm3.engine.engine import Engine, Request
from smollm3.engine.params import SamplingParams
from smollm3.engine.reading import PromptScores
from smollm3.engine.runner import Row, Runner
from smollm3.engine.sampling import log_probabilities
from smollm3.model.native_runner import NativeRunner
from smollm3.model.recomputing_runner import RecomputingRunner
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import TorchRunner

SCORE = SamplingParams(0, prompt_logprobs=4)


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(0, 400, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def scored(runner: Runner, requests: list[Request], max_step_tokens: int = 512) -> list[PromptScores | None]:
    engine = Engine(runner, max_step_tokens=max_step_tokens)
    for request in requests:
        engine.add(request)
    found: dict[int, PromptScores | None] = {}
    for output in engine.stream():
        found.setdefault(output.request_idx, output.prompt_scores)
    return [found[idx] for idx in range(len(requests))]


@pytest.mark.parametrize("runner_class", [TorchRunner, RecomputingRunner])
def test_scores_are_the_log_softmax_of_a_plain_forward_pass(
    runner_class: type[TorchRunner | RecomputingRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "SCORED_LOGITS", 400 * 50)
    model = tiny_model(SmolLM3ForCausalLM)
    prompts = [ids_of(120, 1), ids_of(9, 2), ids_of(1, 3), ids_of(33, 4)]
    found = scored(runner_class(model), [Request(ids, SCORE) for ids in prompts])
    for ids, scores in zip(prompts, found, strict=True):
        assert scores is not None
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        of_ids = expected.gather(1, torch.tensor(ids[1:], dtype=torch.long)[:, None])[:, 0]
        torch.testing.assert_close(scores.logprobs, of_ids, atol=2e-4, rtol=1e-4)
        if len(ids) > 1:
            torch.testing.assert_close(scores.top_logprobs, expected.topk(4).values, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(expected.gather(1, scores.top_ids), expected.topk(4).values)


def test_natively_the_scores_of_a_prompt_are_the_same_bits_in_any_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_model(SmolLM3ForCausalLM, **sizes).to(torch.bfloat16)
    prompts = [ids_of(200, 1), ids_of(9, 2), ids_of(70, 3)]
    runner = NativeRunner(model, threads=2)
    whole = [runner.forward([Row(runner.open(len(ids)), ids, 0, len(ids))])[:-1] for ids in prompts]
    expected = [
        log_probabilities(logits, torch.tensor(ids[1:]), 4)
        for logits, ids in zip(whole, prompts, strict=True)
    ]
    talk = Request(prompts[0][:50], SamplingParams(60, do_sample=True, seed=1))
    for most, step in ((2**24, 512), (400 * 23, 64), (400, 512)):
        monkeypatch.setattr(scheduler, "SCORED_LOGITS", most)
        company = [*(Request(ids, SCORE) for ids in prompts), talk]
        # Again with what the first round left in the cache.
        for found in (scored(NativeRunner(model), company, step), scored(runner, company, step)):
            assert found[3] is None
            for scores, (logprobs, top, top_ids) in zip(found, expected, strict=False):
                assert scores is not None
                assert torch.equal(scores.logprobs, logprobs)
                assert torch.equal(scores.top_logprobs, top)
                assert torch.equal(scores.top_ids, top_ids)
