"""/v1/chat/completions through the openai client: streams, whole answers, choices, logprobs, stops, usage."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from api_clients import client_of
from serving import Running

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.text.prompt import prompt_ids
from smollm3.tokenization import SmolLM3Tokenizer

ASK = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture(scope="module")
def client(small_server: Running) -> Iterator[openai.OpenAI]:
    with client_of(small_server) as made:
        yield made


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "smollm2-135m", "messages": ASK, "max_tokens": 24, "temperature": 0, **fields}
    )


def test_stream_and_whole_answer_and_generate_say_the_same(
    client: openai.OpenAI, loaded_135m: tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer]
) -> None:
    model, tokenizer = loaded_135m
    ids = prompt_ids(tokenizer, ASK)
    rows: Any = model.generate([ids], max_new_tokens=24, do_sample=False)
    expected = tokenizer.decode(rows[0][len(ids) :], skip_special_tokens=True)
    assert "Paris" in expected
    whole = ask(client)
    assert whole.choices[0].message.content == expected
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens == len(ids)
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens > 3
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    with client.chat.completions.stream(
        model="smollm2-135m", messages=ASK, max_tokens=24, temperature=0
    ) as accumulated:
        assert accumulated.get_final_completion().choices[0].message.content == expected


def test_without_stream_options_no_chunk_has_usage(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, max_tokens=2))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_choices_are_drawn_by_the_seed(client: openai.OpenAI) -> None:
    first, again = (ask(client, n=3, seed=7, temperature=1.5, max_tokens=12) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    pieces = ["", "", ""]
    for chunk in ask(client, n=3, seed=7, temperature=1.5, max_tokens=12, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == texts
    other = ask(client, n=1, seed=8, temperature=1.5, max_tokens=12).choices[0].message.content
    assert other not in texts


def test_logprobs_spell_the_answer(client: openai.OpenAI) -> None:
    whole = ask(client, logprobs=True, top_logprobs=3, max_tokens=8).choices[0]
    entries = whole.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == whole.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        best = max(entry.top_logprobs, key=lambda top: top.logprob)
        assert (entry.token, entry.logprob) == (best.token, best.logprob)
        assert entry.logprob <= 0
    streamed = [
        entry
        for chunk in ask(client, logprobs=True, top_logprobs=3, max_tokens=8, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert streamed == entries


def test_a_stop_string_ends_the_answer_before_itself(client: openai.OpenAI) -> None:
    free = ask(client).choices[0].message.content
    cut = ask(client, stop=["nowhere", "Paris"]).choices[0]
    assert cut.message.content == free[: free.index("Paris")]
    assert cut.finish_reason == "stop"


def test_logit_bias_and_penalties_act(client: openai.OpenAI, small_server: Running) -> None:
    tokenizer = small_server.service.tokenizer
    (token_id,) = tokenizer.encode(" Rome")
    biased = ask(client, logit_bias={str(token_id): 100}, max_tokens=3).choices[0].message.content
    assert biased == " Rome" * 3
    less = ask(
        client, logit_bias={str(token_id): 100}, max_tokens=60, frequency_penalty=2, presence_penalty=2
    )
    assert less.choices[0].message.content.count(" Rome") < 60


def test_context_and_budget_are_told_with_both_numbers(client: openai.OpenAI, small_server: Running) -> None:
    size = small_server.service.context_size
    with pytest.raises(openai.BadRequestError, match=rf"{size}") as caught:
        ask(client, messages=[{"role": "user", "content": "word " * (size + 10)}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match=rf"{size}") as caught:
        ask(client, max_tokens=size)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, n=8, max_tokens=size // 2)
    assert caught.value.param == "n"


def test_an_unknown_model_is_a_404_and_the_last_part_of_the_name_will_do(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-5")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_final_message_can_be_gone_on_from(client: openai.OpenAI) -> None:
    begun = [*ASK, {"role": "assistant", "content": "The capital of France is"}]
    answer = ask(
        client, messages=begun, extra_body={"continue_final_message": True, "add_generation_prompt": False}
    )
    assert answer.choices[0].message.content.startswith(" Paris")


def test_tools_need_a_template_with_a_place_for_them(client: openai.OpenAI) -> None:
    from api_clients import WEATHER

    with pytest.raises(openai.BadRequestError, match="no place for tools") as caught:
        ask(client, tools=[WEATHER])
    assert caught.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="no thinking mode") as caught:
        ask(client, reasoning_effort="low")
    assert caught.value.param == "reasoning_effort"
