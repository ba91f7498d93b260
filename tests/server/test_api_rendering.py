"""Events to chunks to whole answers, without a model: what is told when things end in every way there is."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from token_corpus import write_folder

from smollm3.engine.params import SamplingParams
from smollm3.server.chat_chunks import ChatChunks, fold_chat
from smollm3.server.errors import GenerationError
from smollm3.server.responses_events import ResponseEvents
from smollm3.server.sse import chat_frames
from smollm3.server.work import Event, Token, Work
from smollm3.text.parser import Delta
from smollm3.text.tokenizer import Tokenizer
from smollm3.text.tool_calls import ToolCall

CALL = Delta("tool_call", tool_call=ToolCall("f", '{"a": 1}', 0))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tokenizer"))))


def said(*deltas: Delta, choice_idx: int = 0, **fields: Any) -> Event:
    return Event(choice_idx, deltas, **fields)


async def given(events: Sequence[Event], error: Exception | None = None) -> AsyncIterator[Event]:
    for event in events:
        yield event
    if error is not None:
        raise error


def work(num_choices: int = 1) -> Work:
    return Work([1, 2, 3], SamplingParams(99, eos_token_ids=frozenset({5})), num_choices=num_choices)


def chunks_of(tokenizer: Tokenizer, *, top_logprobs: int | None = None, num_choices: int = 1) -> ChatChunks:
    return ChatChunks(
        {"id": "x", "created": 1, "model": "m"}, work(num_choices), tokenizer, top_logprobs=top_logprobs
    )


def fold(tokenizer: Tokenizer, events: Sequence[Event], **options: Any) -> Any:
    stream = chunks_of(tokenizer, **options).stream(given(events), with_usage=True)
    return asyncio.run(_await(fold_chat(stream)))


async def _await(made: Any) -> Any:
    return await made


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"finish_reason": "stop"}, "tool_calls"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "stop", "stop_string": "END"}, "stop"),
    ],
)
def test_calls_end_a_turn_only_if_the_model_ended_it(
    tokenizer: Tokenizer, last: dict[str, Any], expected: str
) -> None:
    whole = fold(tokenizer, [said(Delta("content", "Let me see.")), said(CALL), said(**last)])
    (choice,) = whole["choices"]
    assert choice["finish_reason"] == expected
    assert choice["message"]["content"] == "Let me see."
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_choices_are_kept_apart_and_counted_together(tokenizer: Tokenizer) -> None:
    events = [
        said(Delta("reasoning", "hm"), num_generated=1, num_reasoning=1),
        said(Delta("content", "b"), choice_idx=1, num_generated=1, num_reused=2),
        said(Delta("content", "a"), num_generated=2, num_reasoning=1),
        said(choice_idx=1, num_generated=2, finish_reason="length", num_reused=2),
        said(num_generated=3, num_reasoning=1, finish_reason="stop"),
    ]
    whole = fold(tokenizer, events, num_choices=2)
    first, second = whole["choices"]
    assert (first["message"]["content"], first["message"]["reasoning_content"]) == ("a", "hm")
    assert (second["message"]["content"], second["finish_reason"]) == ("b", "length")
    assert "reasoning_content" not in second["message"]
    usage = whole["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 5, 8)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 1
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2


def test_logprobs_leave_out_thoughts_and_the_end_and_spell_minus_infinity(tokenizer: Tokenizer) -> None:
    def token(token_id: int, logprob: float) -> Token:
        return Token(token_id, "x", b"x", logprob, ((token_id, logprob),))

    events = [
        said(Delta("reasoning", "x"), tokens=(token(7, -1),), num_generated=1, num_reasoning=1),
        said(tokens=(token(8, -2),), num_generated=2, num_reasoning=1),
        said(Delta("content", "xx"), tokens=(token(9, float("-inf")),), num_generated=3, num_reasoning=1),
        said(tokens=(token(5, -3),), num_generated=4, num_reasoning=1, finish_reason="stop"),
    ]
    (choice,) = fold(tokenizer, events, top_logprobs=1)["choices"]
    entries = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in entries] == [-2, -9999.0]
    assert [entry["top_logprobs"][0]["logprob"] for entry in entries] == [-2, -9999.0]
    json.dumps(choice, allow_nan=False)


def test_an_error_after_the_start_is_a_frame_of_valid_json(tokenizer: Tokenizer) -> None:
    error = GenerationError('it said "no"\n\ndata: [DONE]\r\n\x1b[31m')
    events = [said(Delta("content", "a\n\nb\u2028c"))]

    async def frames() -> list[bytes]:
        stream = chunks_of(tokenizer).stream(given(events, error), with_usage=False)
        return [frame async for frame in chat_frames(stream)]

    role, content, failed, done = asyncio.run(frames())
    for frame in (role, content, failed):
        assert frame.startswith(b"data: {")
        assert frame.endswith(b"}\n\n")
        assert b"\n" not in frame[:-2]
    assert json.loads(content[6:])["choices"][0]["delta"]["content"] == "a\n\nb\u2028c"
    assert json.loads(failed[6:])["error"]["message"] == str(error)
    assert done == b"data: [DONE]\n\n"


def test_a_response_keeps_its_items_apart(tokenizer: Tokenizer) -> None:
    events = [
        said(Delta("reasoning", "hm")),
        said(Delta("content", "See: ")),
        said(CALL, Delta("content", "done")),
        said(finish_reason="stop", num_generated=9),
    ]

    async def made() -> list[dict[str, Any]]:
        rendered = ResponseEvents({"id": "r", "output": []}, work(), tokenizer, top_logprobs=None)
        return [event async for event in rendered.stream(given(events))]

    told = asyncio.run(made())
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    output = told[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "message"]
    added = [event for event in told if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2, 3]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == output
    assert len({item["id"] for item in output}) == 4
    assert told[0]["response"]["output"] == []
    empty = asyncio.run(_events(tokenizer, [said(finish_reason="length", num_generated=1)]))
    assert empty[-1]["type"] == "response.incomplete"
    assert empty[-1]["response"]["output"][0]["content"][0]["text"] == ""


async def _events(tokenizer: Tokenizer, events: Sequence[Event]) -> list[dict[str, Any]]:
    rendered = ResponseEvents({"id": "r", "output": []}, work(), tokenizer, top_logprobs=None)
    return [event async for event in rendered.stream(given(events))]
