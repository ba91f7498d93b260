"""Answers of a tiny random model under each kind of constraint, through the engine, on both runners."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from smollm3.engine.engine import Request, generate
from smollm3.engine.params import SamplingParams
from smollm3.engine.runner import Runner
from smollm3.errors import SmolLM3Error
from smollm3.model.config import SmolLM3Config
from smollm3.model.native_runner import NativeRunner
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import TorchRunner
from smollm3.text.grammar import GrammarCompiler
from smollm3.text.parser import parse
from smollm3.text.thinking_budget import ThinkingBudget
from smollm3.text.tokenizer import Tokenizer
from tests.text.grammar_walks import trained_tokenizer, valid

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "maximum": 99, "minimum": 0},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"name": "weather", "parameters": CITY}, {"name": "now"}]
VOCAB_SIZE = 901


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return trained_tokenizer(special_tags=True)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB_SIZE, eos_of(tokenizer))


@pytest.fixture(scope="module", params=[TorchRunner, NativeRunner])
def runner(request: pytest.FixtureRequest) -> Runner:
    torch.manual_seed(0)
    config = SmolLM3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    model = SmolLM3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 128**-0.5).add_(1 if "norm" in name else 0)
    made: Runner = request.param(model.to(torch.bfloat16))
    return made


def eos_of(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.token_to_id(token) or 0 for token in ("<|end_of_text|>", "<|im_end|>")]


def is_city(text: str) -> bool:
    return valid(json.loads(text), CITY)


def calls_match(text: str, *, thinking_open: bool = False) -> bool:
    calls = parse(text, thinking_open=thinking_open, code=False).tool_calls
    parameters = {"weather": CITY, "now": {"maxProperties": 0}}
    return all(valid(json.loads(call.arguments), parameters[call.name]) for call in calls)


KINDS: dict[str, tuple[Callable[[GrammarCompiler, Tokenizer], Any], Callable[[str], bool]]] = {
    "object": (lambda make, _: make.json_object(), lambda text: isinstance(json.loads(text), dict)),
    "schema": (lambda make, _: make.json_schema(CITY), is_city),
    "regex": (
        lambda make, _: make.regex("(yes|no){3}!"),
        lambda text: bool(re.fullmatch("(yes|no){3}!", text)),
    ),
    "lark": (
        lambda make, _: make.lark('start: "a" start "b" | "c"'),
        lambda text: bool(re.fullmatch("a*cb*", text)),
    ),
    "call": (
        lambda make, _: make.tool_calls(TOOLS, parallel=False),
        lambda text: calls_match(text) and len(parse(text).tool_calls) == 1,
    ),
    "calls": (
        lambda make, _: make.tool_calls(TOOLS),
        lambda text: calls_match(text) and len(parse(text).tool_calls) > 0,
    ),
    "auto": (lambda make, _: make.tool_calls(TOOLS, "auto"), calls_match),
    "thoughts": (
        lambda make, words: ThinkingBudget(words, 6, True, make.json_schema(CITY, thinking="open")),
        lambda text: is_city(parse(text, thinking_open=True, code=False).content),
    ),
    "thoughts and calls": (
        lambda make, words: ThinkingBudget(
            words, 6, True, make.tool_calls(TOOLS, "weather", False, thinking="open")
        ),
        lambda text: calls_match(text, thinking_open=True) and parse(text, thinking_open=True).content == "",
    ),
}
BOUNDED = ["schema", "regex", "call", "thoughts", "thoughts and calls"]


def answers(
    runner: Runner, tokenizer: Tokenizer, params: SamplingParams
) -> dict[int, tuple[str, str | None, SmolLM3Error | None]]:
    """Text, finish reason and error of three samples, which share their steps with a free request."""
    ids: dict[tuple[int, int], list[int]] = defaultdict(list)
    last: dict[tuple[int, int], Any] = {}
    free = Request([5, 6, 7], SamplingParams(max_new_tokens=20))
    for output in generate(runner, [Request([9, 8, 7, 6, 9, 8], params, num_samples=3), free]):
        key = (output.request_idx, output.sample_idx)
        last[key] = output
        if output.token_id not in params.eos_token_ids:
            ids[key].append(output.token_id)
    assert len(ids[1, 0]) == 20
    return {
        sample: (tokenizer.decode(ids[0, sample]), last[0, sample].finish_reason, last[0, sample].error)
        for sample in range(3)
    }


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_has_its_form(
    runner: Runner, tokenizer: Tokenizer, compiler: GrammarCompiler, kind: str, do_sample: bool
) -> None:
    make, fits = KINDS[kind]
    eos = frozenset(eos_of(tokenizer))
    closers = [tokenizer.token_to_id(token) for token in ('"', "}", "]", "</tool_call>")]
    params = SamplingParams(
        max_new_tokens=300,
        do_sample=do_sample,
        seed=4,
        frequency_penalty=0.3,
        logit_bias={token_id: 3.0 for token_id in [*eos, *closers] if token_id is not None},
        eos_token_ids=eos,
        constraint=make(compiler, tokenizer),
    )
    plain = answers(runner, tokenizer, params)
    looked_up = answers(runner, tokenizer, replace(params, prompt_lookup=True))
    for text, reason, error in [*plain.values(), *looked_up.values()]:
        assert error is None
        assert reason == "stop" or kind not in BOUNDED
        assert reason != "stop" or fits(text), text
    assert any(reason == "stop" for _, reason, _ in plain.values())
    # torch rounds several ids at once otherwise than one by one; the native engine does not.
    assert looked_up == plain or isinstance(runner, TorchRunner)
