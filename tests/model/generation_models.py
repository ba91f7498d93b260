"""A tiny random model and a tokenizer of one letter per id, for what generation does around the numbers."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from smollm3.errors import ParameterError
from smollm3.model.captured_steps import CapturedSteps
from smollm3.model.config import SmolLM3Config
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import TorchRunner

LETTERS = "_^$abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"  # ids 0 to 2 are pad, bos and eos
PAD = 1000  # an id that no answer holds
PROMPT = [5, 9, 30, 9, 12]
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": []}


class LetterTokenizer:
    """What a Detokenizer asks of a tokenizer."""

    special_ids = frozenset({0, 1, 2})

    def token_bytes(self, token_id: int) -> bytes:
        return LETTERS[token_id].encode()

    def text(self, ids: list[int]) -> str:
        return "".join(LETTERS[token_id] for token_id in ids)


@functools.cache
def tiny_model() -> SmolLM3ForCausalLM:
    torch.manual_seed(1)
    config = SmolLM3Config(
        vocab_size=len(LETTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.25,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return SmolLM3ForCausalLM(config).eval()


def new_ids(sequences: Tensor, width: int) -> list[list[int]]:
    """The answers of a batch that was padded with PAD, without padding."""
    return [[token_id for token_id in row if token_id != PAD] for row in sequences[:, width:].tolist()]


def answer(model: SmolLM3ForCausalLM, inputs: Any = (PROMPT,), **arguments: Any) -> list[list[int]]:
    """The ids that `generate` adds to each prompt."""
    out = model.generate(list(inputs), **{**GREEDY, "pad_token_id": PAD, **arguments})
    assert isinstance(out, Tensor)
    return new_ids(out, max(map(len, inputs)))


def refusal(model: SmolLM3ForCausalLM, error: type[Exception] = ParameterError, **arguments: Any) -> str:
    """The one line with which `generate` refuses."""
    with pytest.raises(error) as caught:
        model.generate(**{"inputs": [PROMPT], **GREEDY, **arguments})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def replaying(runner: TorchRunner) -> TorchRunner:
    """Let a runner repeat decode steps as it does on CUDA, with the work itself in a graph's place."""
    runner.captured = CapturedSteps(runner.model, runner.cache, lambda work: work)
    return runner
