"""Faulty clients by what they ask: broken JSON, wrong fields, forms that explode, prompts too long or odd.

In: a Client. Out: nothing, or a FaultError where the server's reply is none of those that fit.
"""

from typing import Any

from faulty_client import Client, Kind, check_body
from faulty_texts import ODD, WORDS, Body, broken, changed, encoded, form, text, tools, valid
from faulty_wire import FaultError, Reply, Wire, request

ANSWERED = (200, 400, 404, 413)


async def patient(client: Client, wire: Wire, seconds: float, *statuses: int) -> Reply | None:
    """Wait for a reply for a while, then leave."""
    try:
        reply = await wire.reply(seconds)
    except TimeoutError:
        client.leave(wire)
        return None
    client.expect(reply, *statuses, wire=wire)
    return reply


async def breaks_json(client: Client) -> None:
    draw, most = client.draw, client.target.bounds.body_bytes
    path, body = valid(draw, client.target.model)
    wire = await client.open()
    await wire.send(request(client.target, path, broken(draw, body, most)))
    await patient(client, wire, 20, *ANSWERED)


async def changes_a_body(client: Client) -> None:
    """A valid body with a few things changed: it is answered, or refused with the field's name."""
    draw = client.draw
    path, body = valid(draw, client.target.model)
    wire = await client.open()
    await wire.send(request(client.target, path, encoded(draw, changed(draw, body))))
    await patient(client, wire, draw.uniform(0.5, 6), *ANSWERED)


async def asks_for_a_hard_form(client: Client) -> None:
    """Schemas, patterns, grammars and tools that explode: compiled within limits, or refused."""
    draw = client.draw
    body: Body = {"model": client.target.model, "messages": [{"role": "user", "content": text(draw)}]}
    body |= {"max_tokens": draw.randint(1, 30), "stream": draw.random() < 0.4}
    if draw.random() < 0.3:
        body |= {"tools": tools(draw), "tool_choice": draw.choice(("auto", "required"))}
    else:
        body["response_format"] = form(draw)
    if draw.random() < 0.3:
        body |= {"enable_thinking": True, "thinking_budget": draw.choice((0, 1, 4, 10**6))}
    if draw.random() < 0.3:
        body["n"] = draw.randint(1, 8)
    wire = await client.open()
    await wire.send(request(client.target, "/v1/chat/completions", encoded(draw, body)))
    await patient(client, wire, draw.uniform(0.3, 15), *ANSWERED)


async def asks_too_long(client: Client) -> None:
    """A prompt over the context, or one whose answer does not fit beside it."""
    draw, context = client.draw, client.target.bounds.context
    size = draw.choice((context, context + 1, context * 3, 90_000 // 8))
    prompt: Any = [draw.randrange(40_000) for _ in range(size)] if draw.random() < 0.5 else "harbour " * size
    body = {"model": client.target.model, "prompt": prompt, "max_tokens": draw.randint(1, 50)}
    reply = await client.ask(request(client.target, "/v1/completions", encoded(draw, body)), 400)
    if reply is not None and reply.status == 400 and reply.json["error"]["code"] != "context_length_exceeded":
        raise FaultError(f"a prompt over the context: {reply.body[:300]!r}")


async def spells_special_tokens(client: Client) -> None:
    draw = client.draw
    content = "".join(draw.choice(ODD) if draw.random() < 0.5 else draw.choice(WORDS) for _ in range(12))
    body: Body = {"model": client.target.model, "max_tokens": 8, "seed": 1, "temperature": 1.5}
    if draw.random() < 0.5:
        role = draw.choice(("user", "system"))
        path, body = "/v1/chat/completions", {**body, "messages": [{"role": role, "content": content}]}
    else:
        path, body = "/v1/completions", {**body, "prompt": "x" + content}
    await client.ask(request(client.target, path, encoded(draw, body)), 200, 400)


async def keeps_responses(client: Client) -> None:
    """Stored responses: gone on from, taken away, and never another key's."""
    draw, target = client.draw, client.target
    body: Body = {"model": target.model, "input": text(draw), "max_output_tokens": 4}
    reply = await client.ask(request(target, "/v1/responses", encoded(draw, body)), 200)
    if reply is None or reply.status != 200:
        return
    path = f"/v1/responses/{reply.json['id']}"
    await client.ask(request(target, path, method="GET", key=target.keys[1]), 404)
    go_on = encoded(draw, {**body, "previous_response_id": reply.json["id"], "stream": draw.random() < 0.5})
    await client.ask(request(target, "/v1/responses", go_on, key=target.keys[1]), 404)
    await client.ask(request(target, "/v1/responses", go_on), 200, 404)
    for status in (200, 404):
        gone = await client.ask(request(target, path, method="DELETE"), status, 404)
        if gone is not None:
            check_body(gone)


KINDS = {
    "breaks_json": Kind(breaks_json, 3),
    "changes_a_body": Kind(changes_a_body, 8),
    "asks_for_a_hard_form": Kind(asks_for_a_hard_form, 4),
    "asks_too_long": Kind(asks_too_long),
    "spells_special_tokens": Kind(spells_special_tokens),
    "keeps_responses": Kind(keeps_responses),
}
