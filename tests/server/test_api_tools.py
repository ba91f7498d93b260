"""Tools, forms and thinking through the openai client. The model is random: what is valid is so by force."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from api_clients import TIME, WEATHER, client_of, thinking_service
from pydantic import BaseModel
from serving import Running, running

from smollm3.server.app import build_app
from smollm3.text.chat_template import fixed_template

ASK: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]
THINKING: list[Any] = [*ASK, {"role": "assistant", "content": "<think>\nLet me see"}]
GO_ON = {"continue_final_message": True, "add_generation_prompt": False}
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": SCHEMA}}


class Mood(BaseModel):
    mood: Literal["good", "bad"]
    sure: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = thinking_service(tmp_path_factory.mktemp("think"), fixed_template())
    with running(build_app(service), service) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    extra = {"enable_thinking": False, **fields.pop("extra_body", {})}
    asked = {
        "model": "tiny-think",
        "messages": ASK,
        "max_tokens": 1500,
        "temperature": 1,
        "seed": 3,
        **fields,
    }
    return client.chat.completions.create(**asked, extra_body=extra)


def check_call(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_time":
        assert arguments == {}
    else:
        assert call.function.name == "get_weather"
        assert arguments["city"] in ("Paris", "Rome")
        assert arguments.keys() <= {"city", "days"}
        assert arguments.get("days", 1) in range(1, 6)


@pytest.mark.parametrize("seed", range(2))
def test_required_calls_always_match_their_schemas(client: openai.OpenAI, seed: int) -> None:
    fields = {"tools": [WEATHER, TIME], "tool_choice": "required", "seed": seed}
    choice = ask(client, **fields).choices[0]
    calls = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    for call in calls:
        check_call(call)
    assert len({call.id for call in calls}) == len(calls)
    streamed: dict[int, dict[str, Any]] = {}
    for chunk in ask(client, stream=True, **fields):
        for piece in chunk.choices[0].delta.tool_calls or ():
            if piece.id:
                streamed[piece.index] = {"id": piece.id, "name": piece.function.name, "arguments": ""}
            streamed[piece.index]["arguments"] += piece.function.arguments or ""
    assert list(streamed) == list(range(len(calls)))
    for idx, call in enumerate(calls):
        assert streamed[idx]["name"] == call.function.name
        assert streamed[idx]["arguments"] == call.function.arguments
    assert chunk.choices[0].finish_reason == "tool_calls"


def test_a_named_function_is_called_once_and_parallel_calls_can_be_forbidden(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_time"}}
    (call,) = ask(client, tools=[WEATHER, TIME], tool_choice=named).choices[0].message.tool_calls
    assert call.function.name == "get_time"
    single = ask(
        client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, n=4, max_tokens=400
    )
    for choice in single.choices:
        (call,) = choice.message.tool_calls
        check_call(call)


def test_none_offers_no_tools_and_length_stays_length(client: openai.OpenAI) -> None:
    plain = ask(client, max_tokens=4)
    none = ask(client, max_tokens=4, tools=[WEATHER], tool_choice="none")
    offered = ask(client, max_tokens=4, tools=[WEATHER], tool_choice="required")
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens < offered.usage.prompt_tokens
    assert none.choices[0].message.tool_calls is None
    assert offered.choices[0].finish_reason == "length"
    assert offered.choices[0].message.tool_calls is None


def test_calls_and_their_results_go_back_into_the_chat(client: openai.OpenAI) -> None:
    first = ask(client, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False)
    message = first.choices[0].message
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "blue"}'}
    again = ask(client, messages=[*ASK, message, result], tools=[WEATHER, TIME], max_tokens=8)
    assert again.usage.prompt_tokens > first.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="no earlier message makes") as caught:
        ask(client, messages=[*ASK, message, {**result, "tool_call_id": "call_x"}], tools=[WEATHER])
    assert caught.value.param == "messages[2]"


BAD_PARAMETERS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "no such type"}}},
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
    {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}},
    {"type": "array"},
    {"type": "object", "properties": {"a": {"minItems": 1e9, "type": "array"}}},
    {"type": "object", "properties": 3},
]


@pytest.mark.parametrize("parameters", BAD_PARAMETERS)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_parameters_that_cannot_be_followed_are_refused(
    client: openai.OpenAI, parameters: Any, choice: Any
) -> None:
    bad = {"type": "function", "function": {"name": "bad", "parameters": parameters}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, tools=[WEATHER, bad], tool_choice=choice)
    assert caught.value.param == "tools[1].function.parameters"
    assert "tools[1].function.parameters" in caught.value.message


@pytest.mark.parametrize("seed", range(3))
def test_answers_have_the_form_that_was_asked_for(client: openai.OpenAI, seed: int) -> None:
    mood = ask(client, response_format=FORMAT, seed=seed).choices[0]
    assert Mood.model_validate_json(mood.message.content)
    assert mood.finish_reason == "stop"
    digits = ask(client, response_format={"type": "regex", "pattern": r"[0-9]{3}-[a-c]{2}"}, seed=seed)
    assert re.fullmatch(r"[0-9]{3}-[a-c]{2}", digits.choices[0].message.content)
    lark = {"type": "grammar", "syntax": "lark", "grammar": 'start: ("a" | "b") "!" start?\n'}
    said = ask(client, response_format=lark, seed=seed, max_tokens=3000).choices[0]
    assert re.fullmatch("([ab]!)+", said.message.content)
    obj = ask(client, response_format={"type": "json_object"}, seed=seed, max_tokens=60).choices[0]
    assert obj.message.content.startswith("{")


def test_a_form_goes_together_with_thoughts_and_their_budget(client: openai.OpenAI) -> None:
    extra = {**GO_ON, "thinking_budget": 6, "enable_thinking": True}
    made = ask(client, messages=THINKING, response_format=FORMAT, extra_body=extra)
    message = made.choices[0].message
    assert message.reasoning_content
    assert Mood.model_validate_json(message.content)
    reasoning = made.usage.completion_tokens_details.reasoning_tokens
    assert 6 <= reasoning <= 6 + len("\n</think>\n")
    forced = ask(client, messages=THINKING, tools=[WEATHER], tool_choice="required", extra_body=extra)
    for call in forced.choices[0].message.tool_calls:
        check_call(call)
    free = ask(client, messages=THINKING, extra_body=extra, max_tokens=200)
    assert 6 <= free.usage.completion_tokens_details.reasoning_tokens <= 6 + len("\n</think>\n")


def test_an_effort_is_a_budget_and_contradictions_are_refused(client: openai.OpenAI) -> None:
    extra = {**GO_ON, "enable_thinking": None}
    made = ask(client, messages=THINKING, reasoning_effort="minimal", extra_body=extra, max_tokens=400)
    assert made.usage.completion_tokens_details.reasoning_tokens <= 128 + len("\n</think>\n")
    for fields in (
        {"reasoning_effort": "none", "extra_body": {"enable_thinking": True}},
        {"extra_body": {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}},
        {"extra_body": {"enable_thinking": False, "thinking_budget": 5}},
    ):
        with pytest.raises(openai.BadRequestError):
            ask(client, **fields)


@pytest.mark.parametrize("seed", range(6))
def test_tools_on_offer_and_a_form_give_calls_or_the_form(client: openai.OpenAI, seed: int) -> None:
    message = ask(client, tools=[WEATHER], response_format=FORMAT, seed=seed).choices[0].message
    if message.tool_calls:
        assert message.content is None
        for call in message.tool_calls:
            check_call(call)
    else:
        assert Mood.model_validate_json(message.content)


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}, "response_format"),
        ({"type": "regex", "pattern": "(("}, "response_format"),
        ({"type": "grammar", "syntax": "lark", "grammar": "begin: x"}, "response_format"),
        ({"type": "regex"}, "response_format.pattern"),
        ({"type": "xml"}, "response_format.type"),
    ],
)
def test_a_form_that_cannot_be_followed_is_refused(
    client: openai.OpenAI, response_format: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, response_format=response_format)
    assert caught.value.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_proves_too_complex_on_the_way_is_the_requests_fault(
    client: openai.OpenAI, stream: bool
) -> None:
    rules = [f'r{idx}: r{idx + 1} | "x"' for idx in range(400)]
    form = {"type": "grammar", "syntax": "lark", "grammar": "\n".join([*rules, 'r400: "y"', "start: r0"])}
    with pytest.raises(openai.APIError, match="too complex to follow") as caught:
        for _ in ask(client, response_format=form, stream=stream):
            pass
    assert (caught.value.code, caught.value.type) == ("form_failed", "invalid_request_error")
    if not stream:
        assert isinstance(caught.value, openai.BadRequestError)


def test_pydantic_models_are_parsed_by_the_client(client: openai.OpenAI) -> None:
    made = client.chat.completions.parse(
        model="tiny-think", messages=ASK, response_format=Mood, seed=1, extra_body={"enable_thinking": False}
    )
    assert isinstance(made.choices[0].message.parsed, Mood)
    response = client.responses.parse(
        model="tiny-think", input="How are you?", text_format=Mood, reasoning={"effort": "none"}
    )
    assert isinstance(response.output_parsed, Mood)


def flat(tool: Any) -> Any:
    return {"type": "function", **tool["function"]}


def test_responses_call_tools_think_and_take_results(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny-think",
        "input": "How is the weather?",
        "tools": [flat(WEATHER), flat(TIME)],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "none"},
        "extra_body": {"seed": 5},
    }
    first = client.responses.create(**asked)
    (item,) = first.output
    assert (item.type, item.status) == ("function_call", "completed")
    assert json.loads(item.arguments) is not None
    events = list(client.responses.create(**asked, stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[4].arguments == item.arguments
    result = {"type": "function_call_output", "call_id": item.call_id, "output": '{"sky": "blue"}'}
    second = client.responses.create(
        model="tiny-think", input=[result], previous_response_id=first.id, max_output_tokens=4
    )
    spelled = client.responses.create(
        model="tiny-think",
        max_output_tokens=4,
        input=[{"role": "user", "content": "How is the weather?"}, item, result],
    )
    assert second.usage.input_tokens == spelled.usage.input_tokens > first.usage.input_tokens - 400


def test_thoughts_are_items_of_their_own(client: openai.OpenAI) -> None:
    # A regex that begins with the tag makes the random model think.
    form = {"type": "regex", "pattern": "<think>[a-c]{4}</think>[d-f]{3}"}
    asked: Any = {
        "model": "tiny-think",
        "input": "Hi",
        "reasoning": {"effort": "none"},
        "text": {"format": form},
    }
    made = client.responses.create(**asked, extra_body={"seed": 1})
    thoughts, message = made.output
    assert re.fullmatch("[a-c]{4}", thoughts.content[0].text)
    assert re.fullmatch("[d-f]{3}", made.output_text)
    assert message.type == "message"
    assert made.usage.output_tokens_details.reasoning_tokens >= 4
    kinds = [event.type for event in client.responses.create(**asked, extra_body={"seed": 1}, stream=True)]
    assert "response.reasoning_text.delta" in kinds
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")


def test_the_deployed_template_works_as_ours_does(
    deployed_chat_template: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    service = thinking_service(tmp_path_factory.mktemp("deployed"), deployed_chat_template)
    with running(build_app(service), service) as server, client_of(server) as client:
        choice = ask(client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).choices[0]
        check_call(choice.message.tool_calls[0])
        assert choice.finish_reason == "tool_calls"
        assert ask(client, max_tokens=3, extra_body={"enable_thinking": True}).usage.completion_tokens == 3
