"""Every field of every schema, found in the schema itself: wrong values are a 400 that names the field."""

import json
import math
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from annotated_types import Ge, Gt, Le
from serving import Running

from smollm3.server.chat_schema import ChatRequest
from smollm3.server.completions_schema import CompletionRequest
from smollm3.server.embeddings import EmbeddingRequest
from smollm3.server.fields import Fields
from smollm3.server.responses_schema import ResponsesRequest

MESSAGES = [{"role": "user", "content": "hi"}]
PATHS: dict[type[Fields], tuple[str, dict[str, Any]]] = {
    ChatRequest: ("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, "max_tokens": 1}),
    CompletionRequest: ("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 1}),
    ResponsesRequest: ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 1}),
    EmbeddingRequest: ("/v1/embeddings", {"model": "tiny", "input": "hi"}),
}
# What a field needs beside it, so that its own value is what is judged.
BESIDE = {"top_logprobs": {"logprobs": True}}
# Both spell the same thing, and one of them is in the body already.
REPLACES = {"max_completion_tokens": "max_tokens"}


def kinds_of(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The plain types that an annotation is made of, with what limits them."""
    if typing.get_origin(annotation) is Annotated:
        inner, *more = typing.get_args(annotation)
        yield from kinds_of(inner, (*metadata, *more))
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        for inner in typing.get_args(annotation):
            yield from kinds_of(inner, metadata)
    else:
        yield annotation, metadata


def limits(metadata: tuple[Any, ...]) -> list[Any]:
    return [limit for entry in metadata for limit in (getattr(entry, "metadata", None) or [entry])]


def numeric_fields() -> Iterator[Any]:
    for schema in PATHS:
        for name, info in schema.model_fields.items():
            for kind, metadata in kinds_of(info.annotation, tuple(info.metadata)):
                if kind in (int, float):
                    yield pytest.param(schema, name, kind, limits(metadata), id=f"{schema.__name__}.{name}")


def body_with(schema: type[Fields], name: str, value: Any) -> dict[str, Any]:
    body = {**PATHS[schema][1], **BESIDE.get(name, {}), name: value}
    body.pop(REPLACES.get(name, ""), None)
    if schema is ResponsesRequest:
        body.pop("logprobs", None)
    return body


@pytest.fixture(scope="module")
def client(tiny_server: Running) -> Iterator[httpx.Client]:
    with tiny_server.client(headers={"Content-Type": "application/json"}) as made:
        yield made


def post(client: httpx.Client, schema: type[Fields], body: dict[str, Any]) -> httpx.Response:
    # json.dumps spells NaN and Infinity, as some clients do.
    return client.post(PATHS[schema][0], content=json.dumps(body))


def refused(reply: httpx.Response, name: str | None) -> str:
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if name is not None:
        assert error["param"] == name, error
        assert error["message"].startswith(name.split(".")[0])
    return str(error["message"])


def test_the_schemas_have_numbers() -> None:
    found = {str(param.id) for param in numeric_fields()}
    assert {"ChatRequest.temperature", "CompletionRequest.n", "ResponsesRequest.max_output_tokens"} <= found
    assert len(found) > 30


@pytest.mark.parametrize(("schema", "name", "kind", "bounds"), list(numeric_fields()))
def test_what_is_no_number_in_range_is_refused(
    client: httpx.Client, schema: type[Fields], name: str, kind: type, bounds: list[Any]
) -> None:
    for value in (math.nan, math.inf, -math.inf):
        refused(post(client, schema, body_with(schema, name, value)), None)
    bad: list[Any] = [True, False, "2", "", [], [1], {}, 10**400, 1e308, -1e308]
    bad += [1.5] if kind is int else []
    for limit in bounds:
        if isinstance(limit, Ge):
            bad.append(limit.ge - 1)
        elif isinstance(limit, Gt):
            bad += [limit.gt, limit.gt - 1]
        elif isinstance(limit, Le):
            bad.append(limit.le + 1)
    assert any(isinstance(limit, Ge | Gt) for limit in bounds), f"{name} has no lower limit"
    assert any(isinstance(limit, Le) for limit in bounds), f"{name} has no upper limit"
    for value in bad:
        refused(post(client, schema, body_with(schema, name, value)), name)


def every_field() -> Iterator[Any]:
    for schema in PATHS:
        for name in schema.model_fields:
            yield pytest.param(schema, name, id=f"{schema.__name__}.{name}")


@pytest.mark.parametrize(("schema", "name"), list(every_field()))
def test_null_is_a_field_left_out_or_refused_and_other_types_are_refused(
    client: httpx.Client, schema: type[Fields], name: str
) -> None:
    required = schema.model_fields[name].is_required()
    reply = post(client, schema, body_with(schema, name, None))
    if required:
        refused(reply, name)
    else:
        assert reply.status_code == 200, reply.text
    for value in ({"no": {"such": "thing"}}, [[[]]], 10**30, {"type": ["x"]}):
        reply = post(client, schema, body_with(schema, name, value))
        param = reply.json()["error"]["param"] if reply.status_code == 400 else None
        assert reply.status_code == 400, (value, reply.text)
        assert param is not None
        assert param.startswith(name), (value, param)


@pytest.mark.parametrize("schema", PATHS, ids=lambda schema: schema.__name__)
def test_an_unknown_field_is_named_with_the_one_that_was_meant(
    client: httpx.Client, schema: type[Fields]
) -> None:
    assert "unknown" in refused(post(client, schema, body_with(schema, "foo", 1)), "foo")
    assert "did you mean model?" in refused(post(client, schema, body_with(schema, "modle", 1)), "modle")


NEUTRAL = [
    (
        ChatRequest,
        {"n": 1, "store": False, "service_tier": "auto", "modalities": ["text"], "verbosity": "medium"},
    ),
    (ChatRequest, {"logprobs": False, "stream": False, "tool_choice": "none", "parallel_tool_calls": True}),
    (ChatRequest, {"user": "me", "metadata": {"a": "b"}, "response_format": {"type": "text"}, "stop": []}),
    (ChatRequest, {"reasoning_effort": "none", "tools": [], "logit_bias": {}, "audio": None}),
    (CompletionRequest, {"best_of": 1, "suffix": None, "echo": False, "n": 1, "user": "me"}),
    (
        ResponsesRequest,
        {"background": False, "truncation": "disabled", "service_tier": "default", "include": []},
    ),
    (ResponsesRequest, {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "store": False}),
    (ResponsesRequest, {"reasoning": {"effort": "none"}, "tools": [], "tool_choice": "auto", "metadata": {}}),
]


@pytest.mark.parametrize(("schema", "fields"), NEUTRAL)
def test_values_that_change_nothing_are_taken(
    client: httpx.Client, schema: type[Fields], fields: dict[str, Any]
) -> None:
    reply = post(client, schema, {**PATHS[schema][1], **fields})
    assert reply.status_code == 200, reply.text


REFUSED = [
    (ChatRequest, "store", True),
    (ChatRequest, "service_tier", "flex"),
    (ChatRequest, "modalities", ["text", "audio"]),
    (ChatRequest, "audio", {"voice": "x", "format": "mp3"}),
    (ChatRequest, "functions", []),
    (ChatRequest, "web_search_options", {}),
    (ChatRequest, "stream_options", {"include_usage": True}),
    (ChatRequest, "tool_choice", "required"),
    (ChatRequest, "top_logprobs", 2),
    (ChatRequest, "stop", ["a", "b", "c", "d", "e"]),
    (ChatRequest, "stop[1]", ["a", ""]),
    (ChatRequest, "messages", []),
    (ChatRequest, "metadata.a", {"a": 1}),
    (ChatRequest, "logit_bias.x", {"x": 1}),
    (ChatRequest, "logit_bias.5", {"5": 101}),
    (ChatRequest, "logit_bias.99999", {"99999": 1}),
    (ChatRequest, "chat_template_kwargs.tokenize", {"tokenize": True}),
    (ChatRequest, "chat_template_kwargs.chat_template", {"chat_template": "{{ 1 }}"}),
    (ChatRequest, "max_tokens", 513),
    (CompletionRequest, "best_of", 2),
    (CompletionRequest, "suffix", "x"),
    (CompletionRequest, "prompt", ""),
    (CompletionRequest, "prompt", " \n\t"),
    (CompletionRequest, "prompt", []),
    (CompletionRequest, "prompt[0]", [[]]),
    (CompletionRequest, "prompt[0]", [""]),
    (CompletionRequest, "prompt[1]", ["a", [1]]),
    (CompletionRequest, "prompt[1]", [1, -2]),
    (CompletionRequest, "prompt[1]", [1, True]),
    (CompletionRequest, "prompt", [1, 10**6]),
    (CompletionRequest, "prompt[1]", [[1], [400]]),
    (ResponsesRequest, "input", ""),
    (ResponsesRequest, "input", []),
    (ResponsesRequest, "input[0].type", [{"type": "item_reference", "id": "x"}]),
    (ResponsesRequest, "input[0].content[0].type", [
        {"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1:9/x.png"}]}
    ]),
    (EmbeddingRequest, "input", ""),
    (EmbeddingRequest, "input[0]", [[]]),
    (EmbeddingRequest, "input", [10**6]),
    (EmbeddingRequest, "dimensions", 16),
    (EmbeddingRequest, "encoding_format", "int8"),
    (EmbeddingRequest, "pooling", "max"),
    (ResponsesRequest, "background", True),
    (ResponsesRequest, "truncation", "auto"),
    (ResponsesRequest, "include[0]", ["file_search_call.results"]),
    (ResponsesRequest, "tools[0].type", [{"type": "web_search"}]),
    (ResponsesRequest, "text.format.schema", {"format": {"type": "json_schema", "name": "x"}}),
    (ResponsesRequest, "max_output_tokens", 513),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "param", "value"), REFUSED)
def test_what_is_not_supported_is_named(
    client: httpx.Client, schema: type[Fields], param: str, value: Any
) -> None:
    name = param.split(".")[0].split("[")[0]
    refused(post(client, schema, {**PATHS[schema][1], name: value}), param)


MESSAGE_FAULTS: list[tuple[str, Any]] = [
    ("messages[0].content[1].type", {"role": "user", "content": [
        {"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/"}}]}),
    ("messages[0].content[0].type", {"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}),
    ("messages[0].content[0].type", {"role": "user", "content": [
        {"type": "file", "file": {"file_id": "x"}}]}),
    ("messages[0].content[0].text", {"role": "user", "content": [{"type": "text"}]}),
    ("messages[0].content[0].text", {"role": "user", "content": [{"type": "text", "text": 5}]}),
    ("messages[0].content", {"role": "user", "content": 5}),
    ("messages[0].content", {"role": "user"}),
    ("messages[0].role", {"role": "king", "content": "x"}),
    ("messages[0].role", {"content": "x"}),
    ("messages[0].name", {"role": "user", "content": "x", "name": "bob"}),
    ("messages[0].tool_calls", {"role": "user", "content": "x", "tool_calls": []}),
    ("messages[0].tool_call_id", {"role": "tool", "content": "x"}),
    ("messages[0].mood", {"role": "user", "content": "x", "mood": "good"}),
    ("messages[0].tool_calls[0].function.arguments", {"role": "assistant", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[1]"}}]}),
    ("messages[0].tool_calls[0].type", {"role": "assistant", "tool_calls": [
        {"id": "a", "type": "custom", "function": {"name": "f", "arguments": "{}"}}]}),
    ("messages[0]", "hello"),
]  # fmt: skip


@pytest.mark.parametrize(("param", "message"), MESSAGE_FAULTS)
def test_a_fault_in_a_message_is_named_with_its_place(client: httpx.Client, param: str, message: Any) -> None:
    refused(post(client, ChatRequest, {"model": "tiny", "messages": [message]}), param)


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b'{"model": "tiny", "model": "tiny", "messages": []}',
    b'{"model": "\xff"}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "tiny", "input": "\\udfff", "prompt": "\\udfff"}',
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b"[" * 10_000 + b"]" * 10_000,
    b'{"model": "tiny", "temperature": 1' + b"0" * 10_000 + b"}",
    b'{"model": "tiny", "temperature": NaN}',
]


@pytest.mark.parametrize("path", [path for path, _ in PATHS.values()])
def test_a_body_that_is_no_plain_json_object_is_refused(
    client: httpx.Client, tiny_server: Running, path: str
) -> None:
    for body in BODIES:
        reply = client.post(path, content=body)
        assert reply.status_code == 400, (body[:60], reply.text)
        assert reply.json()["error"]["message"]
    assert client.get("/health").status_code == 200
    assert tiny_server.service.num_active == 0


@pytest.mark.parametrize(("schema", "name"), list(every_field()))
def test_every_field_is_documented(schema: type[Fields], name: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/api.md").read_text()
    assert re.search(rf"`{name}\b", text), f"docs/api.md says nothing about {name}"
