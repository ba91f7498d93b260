"""Every sampler option in every way of decoding: a row gives the same ids in all of them (case 31)."""

from typing import Any

import pytest
import torch
from generation_models import PAD, LetterTokenizer, new_ids, replaying, tiny_model

from smollm3.engine.engine import Engine, Request
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.torch_runner import TorchRunner

STEPS = 10
PROMPT = [5, 9, 30, 9, 12]
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sample": {},
    "temperature": {"temperature": 1.7},
    "temperature 0": {"temperature": 0},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.1},
    "repetition": {"repetition_penalty": 1.5},
    "presence": {"presence_penalty": 2.0},
    "frequency": {"frequency_penalty": 1.1},
    "bias": {"logit_bias": {7: 4.0, 3: -9.0}},
    "bad words": {"bad_words_ids": [[9], [5, 6], [9, 30, 9]]},
    "min new tokens": {"min_new_tokens": 6, "logit_bias": {2: 5.0}},
    "several eos": {"eos_token_id": [2, 8, 9]},
    "greedy with all": {
        "do_sample": False,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {7: 1.0},
        "bad_words_ids": [[9], [5, 6]],
        "min_new_tokens": 4,
    },
    "all": {
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {7: 1.0},
        "bad_words_ids": [[9], [5, 6]],
        "min_new_tokens": 4,
    },
}
MODES = (
    "static",
    "no cache",
    "batch",
    "left padded",
    "right padded",
    "gaps",
    "samples",
    "everything out",
    "stream",
    "stop strings",
    "chunks",
    "replayed steps",
    "crowd",
)


def arguments_of(option: str) -> dict[str, Any]:
    return {"max_new_tokens": STEPS, "do_sample": True, "seed": 11, "pad_token_id": PAD, **OPTIONS[option]}


def alone(option: str) -> list[int]:
    return new_ids(tiny_model().generate([PROMPT], **arguments_of(option)), len(PROMPT))[0]


def run_engine(option: str, runner: TorchRunner, others: list[Request], **settings: int) -> list[int]:
    """Decode the row in an engine of its own settings, among others."""
    config = GenerationConfig(eos_token_id=2).merged(**arguments_of(option))
    engine = Engine(runner, **settings)
    for other in others[:2]:
        engine.add(other)
    engine.step()
    wanted = engine.add(Request(PROMPT, config.sampling_params(STEPS, len(PROMPT), 11)))
    for other in others[2:]:
        engine.add(other)
    return [output.token_id for output in engine.stream() if output.request_idx == wanted]


def decode(option: str, mode: str) -> list[int]:
    """Return the row's answer in one mode."""
    model, arguments, width = tiny_model(), arguments_of(option), len(PROMPT)
    pads = [0, 0, 0]
    masks = {
        "left padded": ([*pads, *PROMPT], [0, 0, 0, 1, 1, 1, 1, 1]),
        "right padded": ([*PROMPT, *pads], [1, 1, 1, 1, 1, 0, 0, 0]),
        "gaps": ([5, 4, 9, 30, 4, 9, 12, 4], [1, 0, 1, 1, 0, 1, 1, 0]),
    }
    if mode in masks:
        ids, mask = (torch.tensor([row, [7] * 8]) for row in masks[mode])
        mask[1] = 1
        return new_ids(model.generate(ids, attention_mask=mask, **arguments), 8)[0]
    if mode == "static":
        return new_ids(model.generate([PROMPT], cache_implementation="static", **arguments), width)[0]
    if mode == "no cache":
        return new_ids(model.generate([PROMPT], use_cache=False, **arguments), width)[0]
    if mode == "batch":
        rows = [[4], PROMPT, [20, 21, 22, 23, 24, 25, 26], PROMPT]
        answers = new_ids(model.generate(rows, **arguments), 7)
        assert answers[1] == answers[3], "one seed for all rows: equal prompts, equal answers"
        return answers[1]
    if mode == "samples":
        return new_ids(model.generate([PROMPT], num_return_sequences=3, **arguments), width)[0]
    if mode == "everything out":
        out = model.generate(
            [PROMPT],
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            logprobs=2,
            **arguments,
        )
        assert len(out.scores) == len(out.logits) == len(out.logprobs[0]) == len(out.top_logprobs[0])
        return new_ids(out.sequences, width)[0]
    if mode == "stream":
        return [output.token_id for output in model.stream([PROMPT], **arguments)]
    if mode == "stop strings":
        stopped = {"stop_strings": ["nowhere", "$$$$"], "tokenizer": LetterTokenizer()}
        return new_ids(model.generate([PROMPT], **stopped, **arguments), width)[0]
    others = [
        Request([3, 4, 5, 6, 7, 8], GenerationConfig(do_sample=True, top_p=0.5).sampling_params(20, 6, 1), 2),
        Request([8], GenerationConfig(repetition_penalty=2.0).sampling_params(3, 1)),
        Request([9] * 9, GenerationConfig(do_sample=True, top_k=2, logprobs=1).sampling_params(6, 9, 3)),
    ]
    if mode == "chunks":
        return run_engine(option, TorchRunner(model), others, max_step_tokens=3)
    if mode == "replayed steps":
        return run_engine(option, replaying(TorchRunner(model, num_slots=2)), others)
    return run_engine(option, TorchRunner(model), others, max_num_samples=3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_gives_the_same_ids_in_every_mode(option: str, mode: str) -> None:
    expected = alone(option)
    assert expected
    assert decode(option, mode) == expected


def test_the_options_of_the_matrix_have_an_effect() -> None:
    answers = {option: tuple(alone(option)) for option in OPTIONS}
    assert answers["temperature 0"] == answers["greedy"]
    for option in set(OPTIONS) - {"greedy", "temperature 0", "sample"}:
        plain = "greedy" if option.startswith("greedy") else "sample"
        assert answers[option] != answers[plain], option
