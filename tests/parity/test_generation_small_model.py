"""Trained weights: SmolLM2-135M's greedy answers in fp32 are those of transformers on the same file."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3.checkpoint.source import open_checkpoint
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.text.tokenizer import Tokenizer

STEPS = 64
QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three prime numbers.",
    "Explain gravity to a child.",
    "Translate to French: good morning, my friend.",
    "Give me a recipe for pancakes.",
    "def fibonacci(n):",
    "Who wrote Romeo and Juliet, and when?",
    "1, 1, 2, 3, 5, 8,",
    "Why is the sky blue? Answer briefly.",
    "Once upon a time, in a small village,",
    "Warum ist der Himmel blau?",
]


def chat_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    return tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")


@pytest.fixture(scope="module")
def tokenizer(small_model: Path) -> Tokenizer:
    with open_checkpoint(small_model) as checkpoint:
        return Tokenizer.from_gguf(checkpoint.tokenizer_metadata)


@pytest.fixture(scope="module")
def ours(small_model: Path) -> SmolLM3ForCausalLM:
    return SmolLM3ForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def reference(reference_135m: Any) -> Any:
    return reference_135m


def greedy(model: Any, ids: torch.Tensor, mask: torch.Tensor, num_steps: int = STEPS) -> torch.Tensor:
    found: torch.Tensor = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=num_steps, do_sample=False, pad_token_id=2
    )
    return found


def test_greedy_answers_to_twelve_prompts_are_transformers(
    ours: SmolLM3ForCausalLM, reference: Any, tokenizer: Tokenizer
) -> None:
    rows = [chat_ids(tokenizer, question) for question in QUESTIONS]
    width = max(map(len, rows))
    ids = torch.tensor([[2] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    mine, theirs = greedy(ours, ids, mask), greedy(reference, ids, mask)
    assert mine.shape == theirs.shape == (len(QUESTIONS), width + STEPS)
    for row, question in enumerate(QUESTIONS):
        assert mine[row].tolist() == theirs[row].tolist(), question
    assert "Paris" in tokenizer.decode(mine[0, width:].tolist())


def test_a_row_of_the_batch_is_what_it_is_alone_and_in_transformers_alone(
    ours: SmolLM3ForCausalLM, reference: Any, tokenizer: Tokenizer
) -> None:
    row = chat_ids(tokenizer, QUESTIONS[3])
    ids, mask = torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)
    alone = greedy(ours, ids, mask, 20)
    assert alone.tolist() == greedy(reference, ids, mask, 20).tolist()
    together = ours.generate([chat_ids(tokenizer, QUESTIONS[8]), row], max_new_tokens=20, do_sample=False)
    assert together[1, -20:].tolist() == alone[0, -20:].tolist()


@pytest.mark.slow
def test_a_token_costs_no_more_than_in_transformers(ours: SmolLM3ForCausalLM, reference: Any) -> None:
    ids = torch.arange(100, 124)[None]
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(3):
        for name, model in (("ours", ours), ("theirs", reference)):
            start = time.process_time()
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=32,
                min_new_tokens=32,
                do_sample=False,
                pad_token_id=2,
            )
            times[name].append(time.process_time() - start)
    assert min(times["ours"]) < 1.1 * min(times["theirs"])
