"""Offline batches: each answer is that of the request alone, what ends early goes on, errors have lines."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

from smollm3.errors import ParameterError
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server import batch as batches
from smollm3.server.batch import Outcome, prepare, run
from smollm3.server.build import ServiceOptions, build_service
from smollm3.server.context import Context
from smollm3.server.errors import EngineDeadError
from smollm3.server.service import Service
from smollm3.tokenization import SmolLM3Tokenizer

MakeService = Callable[[], Service]
Entry = dict[str, Any]


@pytest.fixture(scope="module")
def service(tiny_tokenizer: SmolLM3Tokenizer) -> MakeService:
    """Services over a tiny model on the native engine, whose answers do not depend on the batch."""
    model = tiny_model(SmolLM3ForCausalLM, hidden_size=64, intermediate_size=64).bfloat16()
    return lambda: build_service(model, tiny_tokenizer, "tiny", ServiceOptions(engine="native"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def line(custom_id: str, url: str = "/v1/chat/completions", method: str = "POST", **body: Any) -> str:
    return json.dumps(
        {"custom_id": custom_id, "method": method, "url": url, "body": {"model": "tiny", **body}}
    )


def chat(number: int, **more: Any) -> Entry:
    messages = [{"role": "user", "content": f"Where did she live? {number}"}]
    return {"messages": messages, "max_tokens": 4 + number % 9, **more}


def drawn(number: int) -> str:
    return line(f"request-{number}", **chat(number, temperature=1.0, seed=number))


def answers(path: Path) -> dict[str | None, Entry]:
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    found = {entry["custom_id"]: entry for entry in entries}
    assert len(found) == len(entries), "no request has two answers"
    return found


def texts(path: Path) -> dict[str | None, str]:
    return {
        name: entry["response"]["body"]["choices"][0]["message"]["content"]
        for name, entry in answers(path).items()
    }


def run_all(
    make: MakeService, files: tuple[Path, Path], *, concurrency: int = 8, retry_errors: bool = False
) -> list[Outcome]:
    batch = prepare(*files, retry_errors=retry_errors)
    outcomes: list[Outcome] = []

    async def main() -> None:
        async with make() as service:
            await run(service, batch, concurrency=concurrency, on_outcome=outcomes.append)

    asyncio.run(main())
    return outcomes


def test_every_answer_is_that_of_the_request_alone(service: MakeService, files: tuple[Path, Path]) -> None:
    lines = [drawn(number) for number in range(20)]
    lines += [line("plain", "/v1/completions", prompt="The capital", max_tokens=5, temperature=0)]
    lines += [line("response", "/v1/responses", input="Where?", max_output_tokens=16)]
    lines += [line("vector", "/v1/embeddings", input="Ada Lovelace")]
    files[0].write_text("\n".join(lines) + "\n\n")
    outcomes = run_all(service, files)
    assert [outcome.good for outcome in outcomes] == [True] * 23
    found = answers(files[1])
    assert set(found) == {json.loads(text)["custom_id"] for text in lines}

    async def alone(entry: Entry) -> Entry:
        async with service() as one:
            return await batches.ENDPOINTS[entry["url"]](Context(one, "req-1"), entry["body"])

    for text in lines:
        entry = json.loads(text)
        answer = found[entry["custom_id"]]
        assert set(answer) == {"id", "custom_id", "response", "error"}
        assert answer["error"] is None
        assert set(answer["response"]) == {"status_code", "request_id", "body"}
        assert answer["response"]["status_code"] == 200
        expected, body = asyncio.run(alone(entry)), answer["response"]["body"]
        for name in {"choices", "output_text", "data"} & set(expected):
            assert body[name] == expected[name], entry["custom_id"]
        assert body["usage"]["total_tokens"] == expected["usage"]["total_tokens"]
    assert len({entry["id"] for entry in found.values()}) == 23


BAD: list[tuple[str, str, str]] = [
    ("{", "invalid_json_line", "not JSON"),
    ("[1]", "invalid_json_line", "not an object"),
    ('{"method": "POST", "url": "/v1/completions", "body": {}}', "invalid_custom_id", "custom_id"),
    (line("a", method="GET"), "invalid_method", "give POST"),
    (line("b", "/v1/files"), "invalid_url", "/v1/files"),
    ('{"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": 3}', "invalid_body", "object"),
    ('{"custom_id": "d", "mode": 1}', "invalid_line", "mode"),
    ('{"custom_id": "e", "custom_id": "f"}', "invalid_json_line", "twice"),
]


@pytest.mark.parametrize(("text", "code", "said"), BAD, ids=lambda value: str(value)[:20])
def test_a_line_that_cannot_be_run_has_an_error_for_an_answer(
    service: MakeService, files: tuple[Path, Path], text: str, code: str, said: str
) -> None:
    files[0].write_text(f"{drawn(1)}\n{text}\n{drawn(2)}\n")
    assert sorted(outcome.good for outcome in run_all(service, files)) == [False, True, True]
    bad = next(entry for entry in answers(files[1]).values() if entry["error"])
    assert bad["response"] is None
    assert (bad["error"]["code"], bad["error"]["line"]) == (code, 2)
    assert said in bad["error"]["message"]
    assert run_all(service, files) == [], "nothing is left to do"


def test_what_the_server_refuses_has_its_status_and_body(
    service: MakeService, files: tuple[Path, Path]
) -> None:
    refused = {
        "unknown-field": ({"best_of": 3}, 400, "best_of"),
        "stream": ({"stream": True}, 400, "stream"),
        "too-long": ({"max_tokens": 10_000}, 400, "max_tokens"),
        "model": ({"model": "another"}, 404, "model"),
    }
    files[0].write_text(
        "".join(line(name, **{**chat(1), **more}) + "\n" for name, (more, _, _) in refused.items())
    )
    assert not any(outcome.good for outcome in run_all(service, files))
    for name, entry in answers(files[1]).items():
        assert name is not None
        assert entry["error"] is None
        assert entry["response"]["status_code"] == refused[name][1]
        assert refused[name][2] in entry["response"]["body"]["error"]["message"]


def test_twin_ids_are_refused_before_anything_runs(files: tuple[Path, Path]) -> None:
    files[0].write_text("\n".join([drawn(1), drawn(2), drawn(1)]))
    with pytest.raises(ParameterError, match="lines 1 and 3 both have the custom_id 'request-1'"):
        prepare(*files)
    assert not files[1].exists()


@pytest.mark.parametrize("cut", [1, 40])
def test_a_run_goes_on_where_it_ended(service: MakeService, files: tuple[Path, Path], cut: int) -> None:
    files[0].write_text("".join(drawn(number) + "\n" for number in range(12)))
    run_all(service, files)
    whole = texts(files[1])
    lines = files[1].read_bytes().splitlines(keepends=True)
    files[1].write_bytes(b"".join(lines[:5]) + lines[5][:-cut])  # as a power cut leaves it
    assert len(run_all(service, files)) == 7
    assert texts(files[1]) == whole
    assert files[1].read_bytes().startswith(b"".join(lines[:5])), "what was there stays"


def test_failures_are_asked_again_when_wanted(service: MakeService, files: tuple[Path, Path]) -> None:
    good = [drawn(number) for number in range(3)]
    files[0].write_text("\n".join([*good, line("mended", **chat(1, top_k=-1)), "{"]))
    run_all(service, files)
    files[0].write_text("\n".join([*good, line("mended", **chat(1, top_k=1)), "{"]))
    assert run_all(service, files) == []
    assert len(run_all(service, files, retry_errors=True)) == 2
    found = answers(files[1])
    assert found["mended"]["response"]["status_code"] == 200
    assert found[None]["error"]["line"] == 5
    assert not list(files[1].parent.glob(".*"))


def test_an_output_of_something_else_is_refused(files: tuple[Path, Path]) -> None:
    files[0].write_text(drawn(1) + "\n")
    for text, said in (
        ("my notes\n", "line 1 is no answer of a batch"),
        (
            '{"id": "x", "custom_id": "other", "response": {"status_code": 200}, "error": null}\n',
            "not in the",
        ),
    ):
        files[1].write_text(text)
        with pytest.raises(ParameterError, match=said):
            prepare(*files)
        assert files[1].read_text() == text
    with pytest.raises(ParameterError, match="is the input"):
        prepare(files[0], files[0])
    with pytest.raises(ParameterError, match="no requests"):
        prepare(files[1].with_name("none"), files[1]) if files[1].with_name("none").write_text("\n") else None
    with pytest.raises(ParameterError, match="cannot be read"):
        prepare(files[0].with_name("missing"), files[1])


def test_only_a_window_of_requests_is_in_work(
    service: MakeService, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files[0].write_text("".join(drawn(number) + "\n" for number in range(300)))
    running: set[int] = set()
    most, ahead, done = 0, 0, 0

    async def create(context: Context, body: Entry) -> Entry:
        nonlocal most, ahead, done
        running.add(body["seed"])
        most, ahead = max(most, len(running)), max(ahead, body["seed"] - done)
        await asyncio.sleep(0)
        running.discard(body["seed"])
        done += 1
        return {}

    monkeypatch.setattr(batches, "ENDPOINTS", {"/v1/chat/completions": create})
    assert len(run_all(service, files, concurrency=7)) == 300
    assert most == 7
    assert ahead <= 7, "lines are read as they are needed"


def test_a_dead_engine_ends_the_run_and_leaves_whole_lines(
    service: MakeService, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files[0].write_text("".join(drawn(number) + "\n" for number in range(40)))

    def broken() -> Service:
        made = service()
        forward, calls = made.engine.runner.forward, iter(range(1000))

        def fail(rows: Any) -> Any:
            if next(calls) == 30:
                raise RuntimeError("memory fault")
            return forward(rows)

        monkeypatch.setattr(made.engine.runner, "forward", fail)
        return made

    with pytest.raises(EngineDeadError):
        run_all(broken, files, concurrency=4)
    written = len(answers(files[1]))
    assert 0 < written < 40
    assert len(run_all(service, files)) == 40 - written
    assert len(texts(files[1])) == 40
