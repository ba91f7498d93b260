"""Honest clients among the faulty ones: a pool of requests, asked again and again, whose answers are known.

In: a server. Out: counts of answers, and of refusals for want of room; FaultError for an answer that differs.
"""

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

from faulty_client import check_body
from faulty_texts import Body, chat, text
from faulty_wire import FaultError, Reply, Target, Wire, events, request

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
REFUSALS = 60  # in a row, a second apart, before it counts as a fault


@dataclass(frozen=True)
class Question:
    path: str
    body: Body
    key: str
    can_stream: bool


@dataclass
class Honest:
    """`asked` and `refused` count over all its clients."""

    target: Target
    pool: list[Question]
    answers: list[Any] = field(default_factory=list)
    asked: int = 0
    refused: int = 0

    async def learn(self) -> None:
        """Ask each question alone."""
        for question in self.pool:
            answer = await _ask(self.target, question, stream=False)
            if answer is None:
                raise FaultError("refused, with nobody else there")
            self.answers.append(answer)

    async def ask(self, draw: random.Random) -> None:
        """Ask a question until it is answered; FaultError unless the answer is the known one."""
        place = draw.randrange(len(self.pool))
        question = self.pool[place]
        stream = question.can_stream and draw.random() < 0.5
        for _ in range(REFUSALS):
            answer = await _ask(self.target, question, stream)
            if answer is not None:
                break
            self.refused += 1
            await asyncio.sleep(1)
        else:
            raise FaultError(f"an honest client was refused {REFUSALS} times in a row")
        self.asked += 1
        if answer != self.answers[place]:
            raise FaultError(
                f"an honest answer differs (stream={stream}): {question.path} {json.dumps(question.body)}: "
                f"{answer} instead of {self.answers[place]}"
            )


def questions(target: Target, draw: random.Random, count: int) -> list[Question]:
    """Return requests whose answers are always the same: greedy, or drawn with a seed."""
    return [_question(target, draw, idx) for idx in range(count)]


def _question(target: Target, draw: random.Random, idx: int) -> Question:
    body: Body = {"model": target.model}
    if draw.random() < 0.6:
        body |= {
            "temperature": draw.uniform(0.3, 1.3),
            "top_p": draw.uniform(0.7, 1),
            "seed": draw.randrange(10**6),
        }
    else:
        body["temperature"] = 0
    new, kind = draw.randint(4, 40), idx % 8
    path = COMPLETIONS if kind in (0, 1, 2) else RESPONSES if kind == 6 else CHAT
    if path == COMPLETIONS:
        body |= {"prompt": text(draw, 120 if kind == 1 else 40), "max_tokens": new}
        body |= {"n": draw.randint(2, 3), "temperature": 0.9, "seed": idx} if kind == 2 else {}
        body |= {"logprobs": 3} if kind == 1 else {}
    elif path == CHAT:
        body |= {"messages": chat(draw), "max_tokens": new}
        body |= (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
            if kind == 4
            else {}
        )
        body |= {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60} if kind == 5 else {}
    else:
        body |= {"input": text(draw), "max_output_tokens": new, "store": False}
    if kind == 7:
        return Question(
            "/v1/embeddings",
            {"model": target.model, "input": [text(draw), text(draw)]},
            target.keys[0],
            False,
        )
    return Question(path, body, draw.choice(target.keys), path != RESPONSES)


async def _ask(target: Target, question: Question, stream: bool) -> Any:
    """Return what an answer says, without what is new each time; None if there was no room for it."""
    body = (
        {**question.body, "stream": True, "stream_options": {"include_usage": True}}
        if stream
        else question.body
    )
    wire = await Wire.open(target)
    try:
        await wire.send(request(target, question.path, json.dumps(body).encode(), key=question.key))
        reply = await wire.reply()
        crowded = target.crowded_since(wire.opened_at)
    finally:
        wire.close()
    if reply is not None and reply.status == 200 and not reply.cut:
        check_body(reply)
        return _streamed(reply) if stream else _whole(question.path, reply.json)
    if (reply is not None and reply.status == 429) or (crowded and (reply is None or reply.status == 503)):
        return None
    what = "no reply" if reply is None else f"{reply.status}{' cut' * reply.cut}: {reply.body[-300:]!r}"
    raise FaultError(f"an honest client got {what} for {question.path} {json.dumps(question.body)}")


def _whole(path: str, found: Body) -> Any:
    if path == RESPONSES:
        texts = [part["text"] for item in found["output"] for part in item.get("content") or ()]
        return texts, found["status"], found["usage"]["output_tokens"]
    if path == "/v1/embeddings":
        return [item["embedding"] for item in found["data"]]
    choices = [
        _choice(choice.get("message", choice), choice["finish_reason"], choice["logprobs"])
        for choice in found["choices"]
    ]
    return choices, found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]


def _choice(said: Body, reason: str, logprobs: Any) -> Any:
    calls = [
        (call["function"]["name"], call["function"]["arguments"]) for call in said.get("tool_calls") or ()
    ]
    scores = (logprobs["tokens"], logprobs["token_logprobs"]) if logprobs else None
    return said.get("text") or said.get("content") or "", calls, reason, scores


def _streamed(reply: Reply) -> Any:
    """Return the same of a stream, its pieces put together."""
    if not reply.body.endswith(b"data: [DONE]\n\n"):
        raise FaultError(f"a stream without its end: {reply.body[-300:]!r}")
    made: dict[int, Body] = {}
    usage: Body = {}
    for event in events(reply.body):
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            _add(
                made.setdefault(choice["index"], {"text": "", "calls": {}, "reason": "", "scores": ([], [])}),
                choice,
            )
    choices = [
        (
            made[idx]["text"],
            [(name, "".join(pieces)) for name, pieces in made[idx]["calls"].values()],
            made[idx]["reason"],
            made[idx]["scores"] if made[idx]["scores"][0] else None,
        )
        for idx in sorted(made)
    ]
    return choices, usage["prompt_tokens"], usage["completion_tokens"]


def _add(so_far: Body, choice: Body) -> None:
    delta = choice.get("delta", choice)
    so_far["text"] += delta.get("text") or delta.get("content") or ""
    so_far["reason"] = choice["finish_reason"] or so_far["reason"]
    for call in delta.get("tool_calls") or ():
        name, pieces = so_far["calls"].setdefault(call["index"], (call["function"].get("name"), []))
        pieces.append(call["function"].get("arguments") or "")
    if choice.get("logprobs"):
        for place, name in enumerate(("tokens", "token_logprobs")):
            so_far["scores"][place].extend(choice["logprobs"][name])
