"""The body of a call: JSON, Python's spelling of it, and what follows."""

import json
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm3.text.tool_calls import ToolCall, read_calls

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.text(), JSON, max_size=4)
NAME = st.text(min_size=1)


def read(body: str) -> list[tuple[str, str]]:
    calls, rest = read_calls(body, python_chars=10_000)
    assert rest == ""
    return calls


@given(NAME, OBJECT, st.sampled_from([None, 2]), st.booleans())
def test_json_comes_back(name: str, arguments: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    body = json.dumps({"name": name, "arguments": arguments}, indent=indent, ensure_ascii=ascii_only)
    ((found, text),) = read(f"\n {body}\n")
    assert found == name
    assert json.loads(text) == arguments


@given(NAME, OBJECT)
def test_python_spelling_comes_back(name: str, arguments: dict[str, Any]) -> None:
    ((found, text),) = read(repr({"name": name, "arguments": arguments}))
    assert found == name
    assert json.loads(text) == arguments


@given(NAME, OBJECT)
def test_arguments_as_json_text_come_back(name: str, arguments: dict[str, Any]) -> None:
    ((found, text),) = read(json.dumps({"name": name, "arguments": json.dumps(arguments)}))
    assert (found, json.loads(text)) == (name, arguments)


@given(st.text(max_size=60) | st.text(alphabet="{}[]'\":,\\ntruefals01 ", max_size=60))
def test_any_text_is_read_or_left(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls, _ = read_calls(text, python_chars=10_000)
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)


def test_lists_of_calls_and_what_follows() -> None:
    body = '[{"name": "f"}, {"name": "g", "arguments": null}] and more '
    assert read_calls(body, python_chars=0) == ([("f", "{}"), ("g", "{}")], "and more")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "1" * 5000])
def test_numbers_that_json_has_not(number: str) -> None:
    assert read('{"name": "f", "arguments": {"x": ' + number + "}}") == []


@pytest.mark.parametrize(
    "body",
    [
        "{'name': 'f', 'arguments': {'x': open('/etc/passwd')}}",
        "{'name': 'f', 'arguments': {'x': ().__class__}}",
        "{'name': 'f', 'arguments': [x for x in range(9)]}",
        "{'name': 'f', 'arguments': {'x': 9 ** 9 ** 9}}",
        "{'name': 'f', 'arguments': {'x': b'bytes'}}",
        "{'name': 'f', 'arguments': {(1, 2): 3}}",
        "{'name': 'f', 'arguments': {'x': 1j}}",
        "{'name': f'{1}'}",
        "{**{'name': 'f'}}",
        "{'name': None}",
        "{'name': 'f', 'arguments': 'x'}",
    ],
)
def test_only_literals_are_read(body: str) -> None:
    assert read(body) == []


def test_a_stray_backslash_warns_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(r"{'name': 'f', 'arguments': {'path': 'C:\data'}}") == [("f", '{"path": "C:\\\\data"}')]


def test_a_call_is_a_record() -> None:
    call = ToolCall("f", '{"a": 1}', 2)
    assert (call.name, json.loads(call.arguments), call.idx, call.closed) == ("f", {"a": 1}, 2, True)
    with pytest.raises(AttributeError):
        call.name = "g"  # type: ignore[misc]
