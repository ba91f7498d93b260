"""Every sampler option in every way of decoding, through both runners: equal ids; natively equal bits."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
import torch
from generation_models import tiny_model
from numpy.typing import NDArray
from test_generation_modes import OPTIONS

from smollm3.engine.engine import Engine, Request
from smollm3.engine.runner import Runner
from smollm3.engine.sample import TokenOutput
from smollm3.model.config import SmolLM3Config
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.native_runner import NativeRunner
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import TorchRunner

STEPS = 24
PROMPT = [5, 9, 30, 9, 12, 5, 9, 30, 9]
LONG = [(place * place * 7 + 3 * place) % 37 + 3 for place in range(150)] + PROMPT
MODES = ("plain", "lookup", "constraint", "preempted", "reused", "chunked", "shared and lookup")


class Anything:
    """A constraint that allows all ids, by a mask."""

    ended = False

    def __init__(self) -> None:
        self.num = 0

    def mask(self) -> NDArray[np.uint32] | None:
        return np.full(2, 0xFFFFFFFF, np.uint32) if self.num % 2 else None

    def accept(self, token_id: int) -> None:
        self.num += 1

    def fork(self) -> Self:
        return type(self)()


def native_model() -> SmolLM3ForCausalLM:
    torch.manual_seed(1)
    config = SmolLM3Config(
        vocab_size=40,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.25,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return SmolLM3ForCausalLM(config).eval().to(torch.bfloat16)


NATIVE, TORCH = native_model(), tiny_model()
RUNNERS: dict[str, tuple[Callable[[], Runner], list[int]]] = {
    "native": (lambda: NativeRunner(NATIVE, threads=1, max_cache_tokens=64 * 24), LONG),
    "torch": (lambda: TorchRunner(TORCH, max_kept_tokens=400), PROMPT),
}


def request(option: str, prompt: list[int], *, salt: str = "", **changes: Any) -> Request:
    config = GenerationConfig(eos_token_id=2).merged(
        **{"max_new_tokens": STEPS, "do_sample": True, "output_logits": True, **OPTIONS[option]}
    )
    params = config.sampling_params(STEPS, len(prompt), 11)
    return Request(prompt, type(params)(**{**vars(params), **changes}), 2, salt)


def eager(engine: Engine) -> Engine:
    """Guess whatever there is to guess."""
    for num in (1, 1000):
        engine._speculator.costs.note(num, 1.0)
    engine._speculator.costs.note = lambda num_ids, seconds: None  # type: ignore[method-assign]
    return engine


def outputs_of(engine: Engine, wanted: int) -> list[TokenOutput]:
    found = []
    while engine.has_work:
        found += [output for output in engine.step() if output.request_idx == wanted]
    assert all(output.error is None for output in found)
    return sorted(found, key=lambda output: output.sample_idx)


def decode(option: str, mode: str, runner: Runner, prompt: list[int]) -> list[TokenOutput]:
    engine = eager(Engine(runner, max_step_tokens=5 if mode == "chunked" else 512))
    if mode == "plain":
        return outputs_of(engine, engine.add(request(option, prompt)))
    if mode == "constraint":
        return outputs_of(engine, engine.add(request(option, prompt, constraint=Anything())))
    rival = request("sample", [*prompt[:-2], 3, 4], prompt_lookup=True, seed=1)
    engine.add(rival)
    if mode == "reused":
        outputs_of(engine, 0)
        found = outputs_of(engine, engine.add(request(option, prompt)))
        assert all(output.num_reused > 0 for output in found)
        return found
    wanted = engine.add(request(option, prompt, prompt_lookup="lookup" in mode))
    if mode == "shared and lookup":
        engine.add(rival)
    if mode != "preempted":
        return outputs_of(engine, wanted)
    found = [output for _ in range(7) for output in engine.step() if output.request_idx == wanted]
    for _ in range(3 if len(engine._scheduler.running) > 3 else 1):
        engine._scheduler._step_back()
    found += outputs_of(engine, wanted)
    assert engine.stats().preemptions_total > 0
    return sorted(found, key=lambda output: output.sample_idx)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", RUNNERS)
def test_an_option_gives_the_same_answers_in_every_mode(kind: str, option: str, mode: str) -> None:
    make, prompt = RUNNERS[kind]
    expected = decode(option, "plain", make(), prompt)
    runner = make()
    found = decode(option, mode, runner, prompt)
    key = [(output.sample_idx, output.token_id, output.finish_reason) for output in expected]
    assert [(output.sample_idx, output.token_id, output.finish_reason) for output in found] == key
    for a, b in zip(expected, found, strict=True):
        assert a.logits is not None
        assert b.logits is not None
        if kind == "native":
            assert torch.equal(a.logits, b.logits)
        else:
            torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-4)
    assert runner.cache_tokens_used == 0


def test_a_request_sees_nothing_of_another_salt_nor_of_a_rejected_guess() -> None:
    """Cases 42 and 43: what is shared is what the ids say, whoever computed it, guesses included."""
    make, prompt = RUNNERS["native"]
    expected = decode("sample", "plain", make(), prompt)
    runner = make()
    engine = eager(Engine(runner))
    for seed in range(4):
        engine.add(request("greedy", [*prompt, *prompt[:seed]], prompt_lookup=True, seed=seed))
    while engine.has_work:
        engine.step()
    assert engine.stats().drafted_total > engine.stats().accepted_total
    for salt, reused in (("other", False), ("", True)):
        engine = Engine(runner)
        found = outputs_of(engine, engine.add(request("sample", prompt, salt=salt)))
        assert all((output.num_reused > 0) == reused for output in found)
        for a, b in zip(expected, found, strict=True):
            assert a.token_id == b.token_id
            assert torch.equal(a.logits, b.logits)  # type: ignore[arg-type]


def test_a_second_turn_takes_in_only_what_is_new() -> None:
    for model, prompt in ((NATIVE, LONG), (TORCH, PROMPT)):
        runner = model.new_runner()
        first = list(
            model.stream([prompt], runner=runner, max_new_tokens=9, do_sample=False, eos_token_id=[])
        )
        ids = [*prompt, *(output.token_id for output in first)]
        second = list(
            model.stream([[*ids, 7, 8]], runner=runner, max_new_tokens=4, do_sample=False, eos_token_id=[])
        )
        again = model.generate([[*ids, 7, 8]], max_new_tokens=4, do_sample=False, eos_token_id=[])
        assert [output.token_id for output in second] == again[0, -4:].tolist()
        assert second[0].num_reused == len(ids) - 1, "the last id was chosen and never taken in"
