"""What goes into generate, and what is refused with which line."""

from typing import Any

import pytest
import torch
from generation_models import GREEDY, PAD, PROMPT, answer, new_ids, refusal

from smollm3.errors import PromptError
from smollm3.model.smollm3 import SmolLM3ForCausalLM

# Inputs


def test_tensors_and_lists_of_one_or_two_dimensions_are_prompts(model: SmolLM3ForCausalLM) -> None:
    expected = model.generate(torch.tensor([PROMPT]), **GREEDY)
    assert expected.shape == (1, len(PROMPT) + 8)
    assert expected.dtype == torch.long
    assert expected[0, : len(PROMPT)].tolist() == PROMPT
    for inputs in (
        torch.tensor(PROMPT),
        PROMPT,
        [PROMPT],
        (PROMPT,),
        torch.tensor([PROMPT], dtype=torch.int32),
    ):
        assert model.generate(inputs, **GREEDY).tolist() == expected.tolist()
    assert model.generate(input_ids=torch.tensor([PROMPT]), **GREEDY).tolist() == expected.tolist()
    mapping = {"input_ids": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, 5)}
    assert model.generate(**mapping, **GREEDY).tolist() == expected.tolist()


def test_the_ids_are_given_once(model: SmolLM3ForCausalLM) -> None:
    assert "once" in refusal(model, input_ids=[PROMPT])
    assert "once" in refusal(model, inputs=None)


@pytest.mark.parametrize("inputs", [[], [[]], [PROMPT, []], torch.zeros(1, 0, dtype=torch.long)])
def test_empty_prompts_are_refused(model: SmolLM3ForCausalLM, inputs: Any) -> None:
    assert "empty" in refusal(model, PromptError, inputs=inputs)


@pytest.mark.parametrize(
    "inputs",
    [
        "text",
        ["text"],
        [1.5],
        [[1], 2],
        [True],
        [None],
        7,
        torch.zeros(1, 3),
        torch.zeros(1, 1, 3).long(),
        {"a": 1},
    ],
)
def test_what_is_no_ids_is_refused(model: SmolLM3ForCausalLM, inputs: Any) -> None:
    refusal(model, PromptError, inputs=inputs)


def test_ids_outside_of_the_vocabulary_are_refused(model: SmolLM3ForCausalLM) -> None:
    assert "999" in refusal(model, PromptError, inputs=[[5, 999]])
    assert "-1" in refusal(model, PromptError, inputs=torch.tensor([[5, -1]]))


def test_masks_fit_and_leave_something(model: SmolLM3ForCausalLM) -> None:
    assert "attention_mask is [1, 4]" in refusal(model, PromptError, attention_mask=torch.ones(1, 4))
    assert "prompt 0 is empty" in refusal(model, PromptError, attention_mask=torch.zeros(1, 5))


def test_without_a_mask_pads_at_both_ends_are_padding_and_pads_inside_are_ids(
    model: SmolLM3ForCausalLM,
) -> None:
    plain = answer(model)
    inside = [5, 0, 30, 9, 12]
    padded = torch.tensor([[0, 0, *PROMPT], [*PROMPT, 0, 0], [0, *inside, 0]])
    found = new_ids(model.generate(padded, **GREEDY), 7)
    assert found[:2] == plain * 2
    assert found[2] == answer(model, [inside], pad_token_id=PAD)[0]
    as_eos = model.generate(padded, **{**GREEDY, "eos_token_id": 0, "min_new_tokens": 8})
    assert new_ids(as_eos, 7)[0] == answer(model, [[0, 0, *PROMPT]], eos_token_id=0, min_new_tokens=8)[0]


def test_ragged_lists_come_back_padded_on_the_left(model: SmolLM3ForCausalLM) -> None:
    out = model.generate([[4], PROMPT], **{**GREEDY, "pad_token_id": 0})
    assert out[:, :5].tolist() == [[0, 0, 0, 0, 4], PROMPT]
    assert new_ids(out, 5) == answer(model, [[4]]) + answer(model)


# Arguments that are refused


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("max_tokens", "max_new_tokens"),
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("num_return_sequence", "num_return_sequences"),
        ("attention_masks", "attention_mask"),
        ("stop_string", "stop_strings"),
    ],
)
def test_an_unknown_argument_names_the_closest_known_one(
    model: SmolLM3ForCausalLM, name: str, close: str
) -> None:
    line = refusal(model, **{name: 3})
    assert f"'{name}'" in line
    assert f"did you mean {close}?" in line


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 4},
        {"penalty_alpha": 0.6},
        {"no_repeat_ngram_size": 2},
        {"guidance_scale": 1.5},
        {"assistant_model": "other"},
        {"output_attentions": True},
        {"past_key_values": ()},
        {"early_stopping": True},
        {"logits_processor": [print]},
    ],
    ids=str,
)
def test_what_is_not_supported_is_one_clear_line(
    model: SmolLM3ForCausalLM, arguments: dict[str, Any]
) -> None:
    assert "is not supported by generate" in refusal(model, **arguments)


def test_neutral_values_of_what_is_not_supported_pass(model: SmolLM3ForCausalLM) -> None:
    neutral = {
        "num_beams": 1,
        "length_penalty": 1.0,
        "early_stopping": False,
        "assistant_model": None,
        "typical_p": 1.0,
    }
    assert answer(model, **neutral) == answer(model)


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": float("inf")},
        {"top_k": True},
        {"num_return_sequences": 0},
        {"num_return_sequences": 10**9},
        {"num_return_sequences": "2"},
        {"max_new_tokens": 0},
        {"max_new_tokens": -5},
        {"max_length": 0, "max_new_tokens": None},
        {"cache_implementation": "quantized"},
        {"use_cache": 1},
        {"use_cache": False, "cache_implementation": "static"},
        {"stop_strings": ["a", ""], "tokenizer": "any"},
        {"stop_strings": "abc"},
        {"seed": 1.5},
        {"seed": "1"},
        {"pad_token_id": -1},
        {"eos_token_id": ["</s>"]},
        {"min_new_tokens": 9},
    ],
    ids=str,
)
def test_wrong_values_are_one_clear_line(model: SmolLM3ForCausalLM, arguments: dict[str, Any]) -> None:
    refusal(model, **arguments)
