"""/v1/completions through the openai client: prompts as text and ids, several at once, echo, logprobs."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
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
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, PROMPTS[0], echo=True, logprobs=1)
    assert caught.value.param == "logprobs"


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
