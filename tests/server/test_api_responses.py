"""/v1/responses through the openai client: whole, streamed, gone on from, kept and forgotten."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from api_clients import client_of
from serving import Running

ASK = "Name the capital of France."


@pytest.fixture(scope="module")
def client(small_server: Running) -> Iterator[openai.OpenAI]:
    with client_of(small_server) as made:
        yield made


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": "smollm2-135m", "input": ASK, "temperature": 0, "max_output_tokens": 24, **fields}
    return client.responses.create(**asked)


def test_the_answer_is_that_of_the_chat(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="smollm2-135m",
        temperature=0,
        max_tokens=24,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK}],
    )
    made = ask(client, instructions="Be brief.")
    assert made.output_text == chat.choices[0].message.content
    assert made.status == "completed"
    assert made.usage.input_tokens == chat.usage.prompt_tokens
    assert made.usage.output_tokens == chat.usage.completion_tokens
    assert made.usage.output_tokens_details.reasoning_tokens == 0
    item = made.output[0]
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    cut = ask(client, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output[0].status == "incomplete"


def test_a_stream_has_openais_events_in_their_order(client: openai.OpenAI) -> None:
    ask(client)  # both that follow find the prompt in the cache
    whole = ask(client)
    events = list(ask(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in deltas) == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage == whole.usage
    assert {event.item_id for event in deltas} == {events[-1].response.output[0].id}
    with client.responses.stream(
        model="smollm2-135m", input=ASK, temperature=0, max_output_tokens=24
    ) as accumulated:
        assert accumulated.get_final_response().output_text == whole.output_text


def test_a_response_can_be_gone_on_from_read_and_forgotten(client: openai.OpenAI) -> None:
    first = ask(client)
    second = ask(client, input="And of Italy?", previous_response_id=first.id)
    spelled = ask(
        client,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": ASK}]},
            *[item.model_dump(exclude_none=True) for item in first.output],
            {"role": "user", "content": "And of Italy?"},
        ],
    )
    assert second.output_text == spelled.output_text
    assert second.usage.input_tokens == spelled.usage.input_tokens > first.usage.input_tokens
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    for gone in (first.id, "resp_nowhere"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError) as caught:
            ask(client, previous_response_id=gone)
        assert caught.value.param == "previous_response_id"
    unkept = ask(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_logprobs_come_when_asked_for(client: openai.OpenAI) -> None:
    made = ask(client, include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=6)
    (part,) = made.output[0].content
    assert b"".join(bytes(entry.bytes) for entry in part.logprobs).decode() == part.text
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)
    assert ask(client, max_output_tokens=2).output[0].content[0].logprobs is None


def test_the_store_is_bounded() -> None:
    from smollm3.server.responses_store import ResponseStore

    store = ResponseStore(max_responses=3, max_bytes=20_000)
    for idx in range(10):
        store.put({"id": f"r{idx}"}, [{"role": "user", "content": "x"}], "me")
    assert len(store) == 3
    assert store.get("r9", "me") is not None
    assert store.get("r9", "you") is None
    assert not store.delete("r9", "you")
    assert store.get("r6", "me") is None
    store.put({"id": "big"}, [{"role": "user", "content": "x" * 18_900}], "me")
    assert len(store) == 1


def test_the_store_takes_no_more_memory_than_it_says() -> None:
    import tracemalloc

    from smollm3.server.responses_store import ResponseStore

    def fill(num: int, size: int) -> None:
        for idx in range(num):
            # Small objects, which take many times the bytes of their JSON.
            message = {"role": "user", "content": [{"n": [float(each)]} for each in range(size)]}
            store.put({"id": f"resp_{size}_{idx:032}"}, [message], "me" * 16)

    bound = 1_000_000
    for num, size in ((100, 2000), (2000, 1)):
        store = ResponseStore(max_bytes=bound)
        tracemalloc.start()
        fill(num, size)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(store) < num
        assert 0.2 * bound < taken <= bound


def test_what_is_kept_is_what_was_put() -> None:
    from smollm3.server.responses_store import ResponseStore

    store = ResponseStore()
    response = {"id": "r", "output": [{"text": "ж\U0001f600\n\x7f", "n": 0.1, "big": 10**30, "none": None}]}
    messages = [{"role": "user", "content": ""}]
    store.put(response, messages, "me")
    stored = store.get("r", "me")
    assert stored is not None
    assert (stored.response, stored.messages) == (response, messages)
    stored.messages.append({})
    assert stored.messages == messages
