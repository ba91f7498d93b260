"""/v1/completions through the openai client: prompts as text and ids, several at once, echo, logprobs."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from api_clients import client_of
from serving import Running

from smollm3.completion import stream
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.tokenization import SmolLM3Tokenizer

PROMPTS = ["The capital of France is", "Once upon a time"]


@pytest.fixture(scope="module")
def client(small_server: Running) -> Iterator[openai.OpenAI]:
    with client_of(small_server) as made:
        yield made


def complete(client: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    asked = {"model": "smollm2-135m", "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
    return client.completions.create(**asked)


def test_text_ids_and_lists_give_what_the_model_generates(
    client: openai.OpenAI, loaded_135m: tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer]
) -> None:
    model, tokenizer = loaded_135m
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    expected = [
        "".join(c.text for c in stream(model, tokenizer, row, max_new_tokens=8, do_sample=False))
        for row in ids
    ]
    assert "Paris" in expected[0]
    assert complete(client, PROMPTS[0]).choices[0].text == expected[0]
    assert complete(client, ids[0]).choices[0].text == expected[0]
    for prompts in (PROMPTS, ids):
        both = complete(client, prompts, n=2)
        assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in both.choices] == [expected[0]] * 2 + [expected[1]] * 2
        assert both.usage.prompt_tokens == sum(map(len, ids))
    pieces = [""] * 4
    for chunk in complete(client, PROMPTS, n=2, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert pieces == [choice.text for choice in both.choices]


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    plain, echoed = complete(client, PROMPTS[0]), complete(client, PROMPTS[0], echo=True)
    assert echoed.choices[0].text == PROMPTS[0] + plain.choices[0].text
    streamed = complete(client, PROMPTS[0], echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == echoed.choices[0].text


def test_logprobs_have_four_lists_of_one_length(client: openai.OpenAI) -> None:
    choice = complete(client, PROMPTS[0], logprobs=2, stop=[","]).choices[0]
    lists = choice.logprobs
    assert "".join(lists.tokens).startswith(choice.text)
    assert lists.text_offset == [len("".join(lists.tokens[:idx])) for idx in range(len(lists.tokens))]
    for token, logprob, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, strict=True):
        assert len(top) == 2
        assert top[token] == logprob == max(top.values())


def test_by_default_an_answer_has_sixteen_tokens(client: openai.OpenAI) -> None:
    made = client.completions.create(model="smollm2-135m", prompt="1 2 3 4 5 6 7 8", temperature=0)
    assert made.usage.completion_tokens == 16
    assert made.choices[0].finish_reason == "length"


def scores_of(model: SmolLM3ForCausalLM, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T - 1, V] of what comes after each id but the last, by a plain forward pass."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)


def check_lists(lists: Any, text: str, ids: list[int], tokenizer: SmolLM3Tokenizer) -> None:
    """The four lists tell of the same tokens: those of the prompt, and then those of the answer."""
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset)
    assert (lists.token_logprobs[0], lists.top_logprobs[0]) == (None, None)
    for place, token_id in enumerate(ids):
        raw = tokenizer.token_bytes(token_id)
        token, offset = lists.tokens[place], lists.text_offset[place]
        if token.startswith("bytes:"):
            assert token == "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        else:
            assert token == raw.decode()
            assert text[offset : offset + len(token)] == token


MIXED = "Ünïcode 日本 🙂, and  spaces:\n\n\tThe capital of France is"


@pytest.mark.parametrize("prompt", [PROMPTS[0], MIXED])
def test_an_echoed_prompt_has_the_scores_of_a_plain_forward_pass(
    client: openai.OpenAI, loaded_135m: tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer], prompt: str
) -> None:
    model, tokenizer = loaded_135m
    ids = tokenizer.encode(prompt)
    expected = scores_of(model, ids)
    made = complete(client, prompt, echo=True, logprobs=3, max_tokens=0)
    choice, lists = made.choices[0], made.choices[0].logprobs
    assert (choice.text, choice.finish_reason, made.usage.completion_tokens) == (prompt, "length", 0)
    check_lists(lists, choice.text, ids, tokenizer)
    of_ids = expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    # The native engine rounds activations where torch does not.
    torch.testing.assert_close(torch.tensor(lists.token_logprobs[1:]), of_ids, atol=0.15, rtol=0.02)
    best = torch.tensor([max(top.values()) for top in lists.top_logprobs[1:]])
    torch.testing.assert_close(best, expected.amax(-1), atol=0.15, rtol=0.02)
    by_ids = complete(client, ids, echo=True, logprobs=3, max_tokens=0).choices[0]
    assert (by_ids.text, by_ids.logprobs) == (prompt, lists)


def test_scores_go_on_into_the_answers_streamed_and_not(
    client: openai.OpenAI, loaded_135m: tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer]
) -> None:
    tokenizer = loaded_135m[1]
    asked: dict[str, Any] = {"logprobs": 1, "max_tokens": 5, "n": 2, "temperature": 1, "seed": 4}
    whole = complete(client, PROMPTS, echo=True, **asked)
    plain = complete(client, PROMPTS, **asked)
    for idx, (choice, answer) in enumerate(zip(whole.choices, plain.choices, strict=True)):
        prompt = PROMPTS[idx // 2]
        ids, lists = tokenizer.encode(prompt), choice.logprobs
        assert choice.text == prompt + answer.text
        check_lists(lists, choice.text, ids, tokenizer)
        assert lists.token_logprobs[len(ids) :] == answer.logprobs.token_logprobs
        assert lists.text_offset[len(ids) :] == [len(prompt) + at for at in answer.logprobs.text_offset]
    streamed: list[dict[str, Any]] = [{"text": "", "logprobs": {}} for _ in range(4)]
    for chunk in complete(client, PROMPTS, echo=True, stream=True, **asked):
        for part in chunk.choices:
            streamed[part.index]["text"] += part.text
            for name, values in (part.logprobs.model_dump() if part.logprobs else {}).items():
                streamed[part.index]["logprobs"].setdefault(name, []).extend(values)
    for choice, pieces in zip(whole.choices, streamed, strict=True):
        assert pieces == {"text": choice.text, "logprobs": choice.logprobs.model_dump()}


def test_an_evaluation_harness_finds_an_entry_for_each_token(
    client: openai.OpenAI, loaded_135m: tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer]
) -> None:
    """As lm-evaluation-harness reads it: what follows the context, but the last, generated token."""
    model, tokenizer = loaded_135m
    context, good, bad = "The capital of France is", " Paris", " banana"
    end = tokenizer.eos_token_id
    found = {}
    for continuation in (good, bad):
        ids, num_context = tokenizer.encode(context + continuation), len(tokenizer.encode(context))
        for bias in ({}, {str(end): 100}):  # the generated token may be the one that ends the answer
            lists = complete(
                client, ids, echo=True, logprobs=1, max_tokens=1, seed=1234, logit_bias=bias
            ).choices[0].logprobs  # fmt: skip
            assert len(lists.token_logprobs) == len(ids) + 1
            scores = lists.token_logprobs[num_context:-1]
            tops = lists.top_logprobs[num_context:-1]
            greedy = all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))
            assert found.setdefault(continuation, (sum(scores), greedy)) == (sum(scores), greedy)
        expected = scores_of(model, ids)[num_context - 1 :]
        of_ids = expected.gather(1, torch.tensor(ids[num_context:])[:, None])
        assert found[continuation][0] == pytest.approx(float(of_ids.sum()), abs=0.2)
    assert found[good][1]
    assert not found[bad][1]
    assert found[good][0] > found[bad][0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": True}, "max_tokens"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens"),
        ({"prompt": [[5] * 200] * 64, "echo": True, "logprobs": 20, "max_tokens": 1}, "logprobs"),
    ],
)
def test_scores_that_cannot_be_had_are_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **{"prompt": PROMPTS[0], **fields})
    assert caught.value.param == param
