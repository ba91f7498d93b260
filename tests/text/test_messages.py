# ruff: noqa: E501 - a table of cases
"""Messages of every shape become text; what cannot be text is refused by its place."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from smollm3.errors import PromptError
from smollm3.text.messages import normalise, turns
from smollm3.text.tool_calls import ToolCall


def one(**message: Any) -> str:
    (result,) = normalise([message])
    assert set(result) == {"role", "content"}
    return result["content"]


def call(name: str = "f", arguments: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_plain_messages_stay_as_they_are() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Hi \n"},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\nHello."},
    ]
    assert normalise(chat) == chat
    assert normalise([{"role": "developer", "content": "x"}]) == [{"role": "system", "content": "x"}]
    assert normalise([{"role": "user", "content": "x", "name": "Ann", "id": 3}]) == [
        {"role": "user", "content": "x"}
    ]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_none_and_missing_content_are_empty_text(role: str) -> None:
    assert one(role=role, content=None) == ""
    assert one(role=role) == ""


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "input_text", "text": "b"}, "c"]
    assert one(role="user", content=parts) == "a bc"
    assert one(role="user", content=()) == ""
    assert one(role="assistant", content=[{"type": "refusal", "refusal": "No."}]) == "No."
    assert one(role="assistant", content=None, refusal="No.") == "No."


@pytest.mark.parametrize("arguments", ['{"city": "Zürich"}', {"city": "Zürich"}, ' { "city" : "Zürich" } '])
def test_tool_calls_become_text(arguments: Any) -> None:
    text = one(role="assistant", content=None, tool_calls=[call("weather", arguments)])
    assert text == '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'


def test_several_calls_after_words_and_thoughts() -> None:
    text = one(
        role="assistant",
        reasoning_content="\nHm.\n",
        content="Let me see.",
        tool_calls=[call("f", "{}"), {"name": "g", "arguments": None}, ToolCall("h", '{"a": 1}')],
    )
    assert text == (
        "<think>\nHm.\n</think>\nLet me see.\n"
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "h", "arguments": {"a": 1}}\n</tool_call>'
    )


def test_older_spellings() -> None:
    assert one(role="assistant", content=None, function_call={"name": "f", "arguments": "{}"}) == (
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    )
    for field in ("reasoning", "thinking"):
        assert one(role="assistant", content="Yes.", **{field: "Hm."}) == "<think>\nHm.\n</think>\nYes."
    assert normalise([{"role": "function", "name": "f", "content": "1"}])[0]["role"] == "user"


def test_thoughts_that_the_content_has_already_are_not_doubled() -> None:
    content = "<think>\nHm.\n</think>\nYes."
    assert one(role="assistant", content=content, reasoning_content="Hm.") == content


def test_code_goes_back_as_code() -> None:
    text = one(role="assistant", content="Run:", tool_calls=[call("python", {"code": "print(1 < 2)"})])
    assert text == "Run:\n<code>\nprint(1 < 2)\n</code>"


def test_tool_results_are_named_user_turns() -> None:
    chat = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [call("f", "{}", id="1"), call("g", "{}", id="2")]},
        {"role": "tool", "tool_call_id": "2", "content": '{"x": [1.0, "é"]}'},
        {"role": "tool", "tool_call_id": "1", "content": 'plain "text"'},
        {"role": "tool", "name": "h", "content": [{"type": "text", "text": "7"}]},
        {"role": "tool", "content": "nameless"},
    ]
    results = normalise(chat)[2:]
    assert {result["role"] for result in results} == {"user"}
    bodies = [result["content"].removeprefix("<tool_response>\n") for result in results]
    bodies = [body.removesuffix("\n</tool_response>") for body in bodies]
    assert bodies[0] == '{"name": "g", "content": {"x": [1.0, "é"]}}'
    assert json.loads(bodies[1]) == {"name": "f", "content": 'plain "text"'}
    assert json.loads(bodies[2]) == {"name": "h", "content": "7"}
    assert bodies[3] == "nameless"


def test_only_our_own_and_the_models_tags_are_trusted() -> None:
    chat = [
        {"role": "user", "content": "<think>x</think>"},
        {"role": "assistant", "content": "a<think>b", "tool_calls": [call("f", {"x": "</tool_call>"})]},
        {"role": "assistant", "content": "<|im_end|>", "reasoning_content": "</think>"},
        {"role": "tool", "content": "</tool_response>"},
    ]
    trusted = [[piece.text for piece in turn.pieces if piece.trusted] for turn in turns(chat)]
    assert trusted == [
        [],
        ["<think>", "<tool_call>", "</tool_call>"],
        ["<think>", "</think>"],
        ["<tool_response>", "</tool_response>"],
    ]
    assert [turn.content for turn in turns(chat)] == [message["content"] for message in normalise(chat)]


def test_records_are_messages_too() -> None:
    @dataclass
    class Record:
        role: str
        content: str

    class Model:
        def model_dump(self) -> dict[str, str]:
            return {"role": "user", "content": "dumped"}

    assert normalise([Record("user", "x"), Model()]) == [
        {"role": "user", "content": "x"},
        {"role": "user", "content": "dumped"},
    ]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("hi", r"messages\[1\] is a str"),
        ({"content": "x"}, r"messages\[1\] has the role None"),
        ({"role": "narrator", "content": "x"}, r"messages\[1\] has the role 'narrator'"),
        ({"role": ["user"], "content": "x"}, r"messages\[1\] has the role"),
        ({"role": "user", "content": 3}, r"messages\[1\] has content of type int"),
        ({"role": "user", "content": {"text": "x"}}, r"messages\[1\] has content of type dict"),
        ({"role": "user", "content": b"x"}, r"messages\[1\] has content of type bytes"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, r"messages\[1\].content\[0\] is of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}, r"content\[1\] is of type 'input_audio'"),
        ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\] is of type 'text' and has no text"),
        ({"role": "user", "content": [{"type": ["x"], "text": "a"}]}, r"content\[0\]"),
        ({"role": "user", "content": [3]}, r"content\[0\] is of type 'int'"),
        ({"role": "user", "content": "x", "images": ["data:"]}, r"messages\[1\] carries images"),
        ({"role": "user", "content": "x", "tool_calls": [call()]}, "only the assistant calls tools"),
        ({"role": "assistant", "tool_calls": "f()"}, "tool_calls of type str"),
        ({"role": "assistant", "tool_calls": [3]}, r"messages\[1\].tool_calls\[0\] names no function"),
        ({"role": "assistant", "tool_calls": [call(), call("")]}, r"tool_calls\[1\] names no function"),
        ({"role": "assistant", "tool_calls": [call("f", "{cut")]}, r"tool_calls\[0\] has arguments that are not JSON"),
        ({"role": "assistant", "tool_calls": [call("f", {"x": float("nan")})]}, "not JSON"),
        ({"role": "assistant", "tool_calls": [call("f", {"x": object()})]}, "not JSON"),
        ({"role": "assistant", "tool_calls": [call("f", "[1]")]}, "arguments of type list"),
        ({"role": "assistant", "content": "x", "reasoning_content": 3}, "reasoning of type int"),
        ({"role": "tool", "tool_call_id": "9", "content": "x"}, "answers the tool call '9', which no earlier message makes"),
        ({"role": "tool", "name": 3, "content": "x"}, "name of type int"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_text_and_names_the_place(message: Any, says: str) -> None:
    with pytest.raises(PromptError, match=says) as caught:
        normalise([{"role": "user", "content": "hi"}, message])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "messages", [[], (), "hi", b"hi", {"role": "user", "content": "x"}, None, 3, [[]], [None]]
)
def test_refuses_what_is_no_conversation(messages: Any) -> None:
    with pytest.raises(PromptError, match="messages"):
        normalise(messages)
