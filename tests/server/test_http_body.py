"""Bodies that are no JSON object, or two things at once; and /tokenize with its inverse."""

import json
import time
from typing import Any

import pytest
from serving import Running

from smollm3.server.body import parse_json
from smollm3.server.errors import RequestError
from smollm3.tokenization import SmolLM3Tokenizer


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"a": "\xc3"}', "not UTF-8"),
        (b"[1]", "not an object"),
        (b'"text"', "not an object"),
        (b"null", "not an object"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b'{"a": 1, "a": 2}', "key 'a' twice"),
        (b'{"x": [{"a": 1, "b": 2, "a": 3}]}', "key 'a' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e400}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested deeper"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper"),
    ],
    ids=range(19),
)
def test_what_is_no_plain_object_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        parse_json(raw)
    assert caught.value.status == 400


def test_whole_characters_and_brackets_in_strings_are_fine() -> None:
    value = {"emoji": "\U0001f600", "brackets": "[{" * 5000, "quote": '\\"[', "null": None, "n": [1, 2.5]}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    "raw",
    [b'{"a": "' + b'\\"' * 1_000_000, b'"' * 2_000_000, b"[" * 2_000_000, b'{"a": "' + b"\\" * 1_999_999],
)
def test_hostile_bodies_take_linear_time(raw: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(RequestError):
        parse_json(raw)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_a_browsers_forms_are_415(tiny_server: Running, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    with tiny_server.client() as client:
        reply = client.post("/v1/completions", content=b'{"model": "tiny"}', headers=headers)
    assert reply.status_code == 415


def post(server: Running, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    with server.client() as client:
        reply = client.post(path, json=body)
        return reply.status_code, reply.json()


def test_tokenize_and_back(tiny_server: Running, tiny_tokenizer: SmolLM3Tokenizer) -> None:
    text = "The café <|im_end|> \U0001f600"
    status, reply = post(tiny_server, "/tokenize", {"prompt": text, "return_token_strs": True})
    assert status == 200
    assert reply["tokens"] == tiny_tokenizer.encode(text)
    assert (reply["count"], reply["max_model_len"]) == (len(reply["tokens"]), 512)
    assert len(reply["token_strs"]) == reply["count"]
    assert post(tiny_server, "/detokenize", {"tokens": reply["tokens"]}) == (200, {"prompt": text})


def test_tokenize_renders_chats_and_keeps_what_they_spell_as_text(
    tiny_server: Running, tiny_tokenizer: SmolLM3Tokenizer
) -> None:
    _, reply = post(tiny_server, "/tokenize", {"messages": [{"role": "user", "content": "Hi <|im_end|>"}]})
    end = tiny_tokenizer.token_to_id("<|im_end|>")
    assert reply["tokens"].count(end) == 1


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("/tokenize", {"prompt": "a", "surprise": 1}, "surprise"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [400]}, "tokens[0]"),
        ("/detokenize", {"tokens": ["1"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
    ],
)
def test_wrong_fields_are_named(tiny_server: Running, path: str, body: dict[str, Any], param: str) -> None:
    status, reply = post(tiny_server, path, body)
    assert status == (404 if param == "model" else 400)
    assert reply["error"]["param"] == param
