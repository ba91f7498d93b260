"""Answers split into reasoning, content and tool calls: known answers, any chunking, hostile text."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.text.messages import normalise
from smollm3.text.parser import Delta, ParsedResponse, ResponseParser, parse
from smollm3.text.tool_calls import ToolCall, read_calls

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
PARIS = ToolCall("weather", '{"city": "Paris"}')


def streamed(chunks: list[str], **options: bool) -> ParsedResponse:
    parser = ResponseParser(**options)
    deltas = [delta for chunk in chunks for delta in parser.push(chunk)] + parser.finish()
    return ParsedResponse(
        "".join(delta.text for delta in deltas if delta.kind == "reasoning"),
        "".join(delta.text for delta in deltas if delta.kind == "content"),
        tuple(delta.tool_call for delta in deltas if delta.tool_call),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris.", ParsedResponse("", "Paris.", ())),
        ("", ParsedResponse("", "", ())),
        ("  two  blanks \n", ParsedResponse("", "  two  blanks \n", ())),
        ("<think>\nHm.\n\nSo.\n</think>\n\nParis.\n", ParsedResponse("Hm.\n\nSo.", "Paris.\n", ())),
        ("\n<think>\n\n</think>\nParis.", ParsedResponse("", "Paris.", ())),
        ("<think>cut off", ParsedResponse("cut off", "", ())),
        (CALL, ParsedResponse("", "", (PARIS,))),
        (f"Let me see.\n{CALL}\n", ParsedResponse("", "Let me see.", (PARIS,))),
        (f"<think>a</think>b{CALL}c", ParsedResponse("a", "b\nc", (PARIS,))),
        (f"<think>I call {CALL} now</think>done", ParsedResponse("I call\nnow", "done", (PARIS,))),
        (f"<think>I call {CALL}", ParsedResponse("I call", "", (PARIS,))),
        ("a < b <i>x</i> <thin", ParsedResponse("", "a < b <i>x</i> <thin", ())),
        ("use <think> tags", ParsedResponse("", "use <think> tags", ())),
        ("stray </tool_call> and </think>", ParsedResponse("", "stray </tool_call> and </think>", ())),
    ],
)
def test_known_answers(text: str, expected: ParsedResponse) -> None:
    assert parse(text) == expected
    assert streamed(list(text)) == expected


def test_several_calls_are_counted() -> None:
    second = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
    calls = parse(f"{CALL}\n{second}{CALL}").tool_calls
    assert [(call.name, call.idx) for call in calls] == [("weather", 0), ("time", 1), ("weather", 2)]


@pytest.mark.parametrize(
    "body",
    [
        '{\n  "name": "weather",\n  "arguments": {\n    "city": "Paris"\n  }\n}',
        "{'name': 'weather', 'arguments': {'city': 'Paris'}}",
        '{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        '{"name": "weather", "parameters": {"city": "Paris"}}',
        '{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}',
        '[{"name": "weather", "arguments": {"city": "Paris"}}]',
    ],
)
def test_every_spelling_of_a_call(body: str) -> None:
    assert parse(f"<tool_call>{body}</tool_call>").tool_calls == (PARIS,)


def test_python_spelling_with_json_names_and_both_quotes() -> None:
    body = """{'name': 'f', 'arguments': {'a': true, 'b': None, 'c': "it's", 'd': [1, 2.5], 'e': null}}"""
    (call,) = parse(f"<tool_call>{body}</tool_call>").tool_calls
    assert json.loads(call.arguments) == {"a": True, "b": None, "c": "it's", "d": [1, 2.5], "e": None}


@pytest.mark.parametrize(
    "body",
    [
        "weather(Paris)",
        '{"name": "weather"',
        '{"arguments": {}}',
        '{"name": "", "arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": {"x": NaN}}',
        '{"name": "f", "arguments": "Paris"}',
        "{'name': 'f', 'arguments': {'x': __import__('os')}}",
        "{'name': 'f', 'arguments': {'x': {1, 2}}}",
        '[{"name": "f"}, 3]',
        "[]",
        "",
        "[" * 5000,
        "{'a': " * 5000,
    ],
)
def test_what_is_no_call_stays_visible(body: str) -> None:
    text = f"see: <tool_call>{body}</tool_call> end"
    assert parse(text) == ParsedResponse("", text, ())
    assert streamed([text[i : i + 3] for i in range(0, len(text), 3)]) == ParsedResponse("", text, ())


def test_a_call_in_prose_with_an_apostrophe_ends_at_its_tag() -> None:
    parser = ResponseParser()
    deltas = parser.push("<tool_call>I don't know</tool_call> but ")
    assert deltas == [Delta("content", "<tool_call>I don't know</tool_call> but")]


def test_unclosed_last_call() -> None:
    response = parse(CALL.removesuffix("</tool_call>"))
    assert response.tool_calls == (ToolCall("weather", '{"city": "Paris"}', closed=False),)
    response = parse('<tool_call>{"name": "f", "arguments": {}}\nAnd now?')
    assert response == ParsedResponse("", "And now?", (ToolCall("f", "{}", closed=False),))
    cut = '<tool_call>{"name": "f", "argum'
    assert parse(cut) == ParsedResponse("", cut, ())


def test_a_call_left_open_before_the_next_one() -> None:
    first = '<tool_call>{"name": "f", "arguments": {}}'
    calls = parse(f"{first}\n{CALL}").tool_calls
    assert [(call.name, call.closed) for call in calls] == [("f", False), ("weather", True)]
    response = parse(f"<think>{first}</think>done")
    assert (response.content, [call.name for call in response.tool_calls]) == ("done", ["f"])


def test_closing_tag_inside_a_string_of_the_arguments() -> None:
    text = 'say </tool_call> and \\ and "'
    body = json.dumps({"name": "f", "arguments": {"text": text}})
    response = parse(f"a <tool_call>{body}</tool_call> b")
    (call,) = response.tool_calls
    assert json.loads(call.arguments) == {"text": text}
    assert response.content == "a\nb"


def test_a_broken_string_does_not_swallow_the_calls_after_it() -> None:
    broken = '<tool_call>{"name": "f}</tool_call>'
    response = parse(f"{broken}\n{CALL}")
    assert response == ParsedResponse("", broken, (PARIS,))


def test_code_blocks() -> None:
    text = 'First.\n<code>\nprint("<tool_call>")\nx = 1 < 2\n</code>\nThen.'
    response = parse(text)
    (call,) = response.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("python", {"code": 'print("<tool_call>")\nx = 1 < 2'})
    assert response.content == "First.\nThen."
    assert parse("<code>x = 1").tool_calls == (ToolCall("python", '{"code": "x = 1"}', closed=False),)
    html = "HTML has <code>x</code>."
    assert parse(html, code=False) == ParsedResponse("", html, ())
    assert parse(f"<think>{html}</think>") == ParsedResponse(html, "", ())


def test_calls_can_be_text() -> None:
    assert parse(f"a {CALL}", tool_calls=False) == ParsedResponse("", f"a {CALL}", ())


def test_prompt_that_opened_the_thoughts() -> None:
    text = "\nHm.</think>\nParis."
    assert parse(text, thinking_open=True) == ParsedResponse("Hm.", "Paris.", ())
    assert parse("<think>" + text, thinking_open=True) == ParsedResponse("Hm.", "Paris.", ())


def test_words_come_at_once_and_tags_are_held() -> None:
    parser = ResponseParser()
    assert parser.push("Hello wor") == [Delta("content", "Hello wor")]
    assert parser.push("ld <") == [Delta("content", "ld")]
    assert parser.push("tool_ca") == []
    assert parser.push("r>") == [Delta("content", " <tool_car>")]
    assert parser.push('\n<tool_call>{"name": "f"') == []
    assert parser.push("}</tool_call>") == [Delta("tool_call", tool_call=ToolCall("f", "{}"))]
    assert parser.finish() == []


PIECES = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<tool_call>", "</tool_call>", "<code>", "</code>", CALL, " ", "\n", "a",
         '{"name": "f", "arguments": {"x": "', '"}}', '"', "'", "\\", "<", "</", "<tool_", "{", "é", "don't"]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(max_examples=400)
@given(PIECES, st.integers(1, 9), st.booleans(), st.booleans())
def test_every_chunking_gives_the_same_and_loses_nothing(
    text: str, size: int, thinking_open: bool, code: bool
) -> None:
    whole = parse(text, thinking_open=thinking_open, code=code)
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert streamed(chunks, thinking_open=thinking_open, code=code) == whole
    # Letters and marks come out as often as they went in, wherever they went.
    kept = whole.reasoning + whole.content + "".join(call.arguments for call in whole.tool_calls)
    assert kept.count("é") + kept.count("\\u00e9") == text.count("é")
    assert kept.count("don't") == text.count("don't")


def test_parsed_answers_go_back_as_the_model_wrote_them() -> None:
    text = f"<think>\nHm.\n</think>\nLet me see.\n{CALL}\n{CALL}"
    parsed = parse(text)
    message = {
        "role": "assistant",
        "content": parsed.content,
        "reasoning_content": parsed.reasoning,
        "tool_calls": parsed.tool_calls,
    }
    assert normalise([message])[0]["content"] == text


HOSTILE = {
    "opens": "<tool_call>",
    "open and close": '<tool_call>"</tool_call>',
    "escaped quotes": '<tool_call>{\\"</tool_call>',
    "strings over tags": '<tool_call>{"\\"</tool_call>',
    "angles": "<",
    "thoughts": "<think>",
    "nearly thoughts": "</thin",
    "blanks": " \n",
    "code": "<code>",
    "backslashes": "\\",
    "dicts": "{'a':1,",
}


@pytest.mark.parametrize("size", [200, 1_000_000])
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("before", ["", '<tool_call>{"'])
def test_a_hostile_megabyte_takes_linear_time(name: str, size: int, before: str) -> None:
    text = before + HOSTILE[name] * (1_000_000 // len(HOSTILE[name]))
    parser = ResponseParser()
    start = time.thread_time()
    for i in range(0, len(text), size):
        parser.push(text[i : i + size])
    parser.finish()
    assert time.thread_time() - start < 2.5  # 0.02 to 0.6 s on a quiet core; quadratic time takes minutes


@pytest.mark.parametrize("filler", ["[1,", "{'a':", "'a':1,", "-", "(", "1or "])
def test_hostile_literals_are_read_in_bounded_time(filler: str) -> None:
    body = "{" + filler * (40_000 // len(filler))
    start = time.thread_time()
    parse(f"<tool_call>{body}</tool_call>" * 25)
    assert time.thread_time() - start < 2.5


def test_read_calls_limits_python_literals() -> None:
    body = "{'name': 'f', 'arguments': {}}"
    assert read_calls(body, python_chars=100) == ([("f", "{}")], "")
    assert read_calls(body, python_chars=10) == ([], "")
