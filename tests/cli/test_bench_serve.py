"""bench/serve.py with servers that are played: what is measured, compared, noticed and left out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

from smollm3 import SmolLM3ForCausalLM

BENCH = Path(__file__).resolve().parents[2] / "bench"

# Stands in for a Python or a binary that serves: a token takes `pause` seconds; `odd` says how it errs.
PLAYED = """#!{python}
import http.server, itertools, json, sys, time
pause, odd = {pause}, {odd!r}
counter = itertools.count()
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def reply(self, text, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.reply({{
            "/health": "{{}}",
            "/v1/models": json.dumps({{"data": [{{"id": "played"}}]}}),
            "/metrics": f'# a comment\\nplayed_steps_total{{{{a="b"}}}} {{next(counter)}}\\n',
        }}[self.path], "text/plain")
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = next(counter)
        if odd == "fails" and body.get("cache_salt"):
            return self.send_error(500, "no")
        assert body["model"] == "played"
        self.send_response(200)
        self.end_headers()
        num = body["max_tokens"]
        for place in range(num):
            time.sleep(pause)
            text = f"{{number if odd == 'differs' else 0}} {{body['prompt'][:2]}}"
            choice = {{"index": 0, "text": text, "finish_reason": "length" if place == num - 1 else None}}
            self.wfile.write(f"data: {{json.dumps({{'choices': [choice]}})}}\\n\\n".encode())
            self.wfile.flush()
        usage = {{"prompt_tokens": len(body["prompt"]), "completion_tokens": num}}
        last = json.dumps({{"choices": [], "usage": usage}})
        self.wfile.write(f"data: {{last}}\\n\\ndata: [DONE]\\n\\n".encode())
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
SMALL = ["--slots", "2", "--new", "4", "--prompt", "8", "--long", "20", "--system", "30", "--repeat", "1"]
SOAK = ["--measure", "soak", "--streams", "4", "--seconds", "1", "--pool", "3", "--soak-new", "8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(SmolLM3ForCausalLM).save_pretrained(folder)
    return str(folder)


def play(folder: Path, *, pause: float = 0.0, odd: str = "") -> str:
    path = folder / f"played-{pause}-{odd}"
    path.write_text(PLAYED.format(python=sys.executable, pause=pause, odd=odd))
    path.chmod(0o755)
    return str(path)


def run(*words: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, str(BENCH / "serve.py"), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_two_servers_are_measured_and_compared(model: str, tmp_path: Path) -> None:
    ours, theirs = play(tmp_path, pause=0.01), play(tmp_path, pause=0.04)
    pythons = ["--python", f"smollm3={ours}", "--python", f"llama-server={theirs}"]
    entries = [f"smollm3={model}", "llama-server=x.gguf", f"vllm={model}"]
    record, said = run(
        *entries, *pythons, *SMALL, "--measure", "ready,throughput,prefill,repeat", "--rounds", "2"
    )
    figures = record["measured"][entries[0]]
    assert 0 < figures["ready"]["ready_s"] <= figures["ready"]["first_token_s"]
    assert figures["throughput"]["tokens_per_s"] <= 2 / 0.01
    assert record["throughput_times_as_fast"]["llama-server=x.gguf"] > 1.5
    assert figures["prefill"]["step_s"] > 0
    assert record["measured"]["llama-server=x.gguf"]["prefill"]["step_s"] is None
    assert list(record["left_out"]) == [entries[2]]
    assert "vllm" in record["left_out"][entries[2]]
    assert (record["bench"], record["rounds"], record["slots"]) == ("serve", 2, 2)
    assert f"left out   {entries[2]}" in said


def test_a_stream_that_waits_is_measured(model: str, tmp_path: Path) -> None:
    played = play(tmp_path, pause=0.01)
    record, _ = run(f"smollm3={model}", "--python", f"smollm3={played}", "--measure", "waits", "--new", "50")
    waits = record["measured"][f"smollm3={model}"]["waits"]
    assert 0.01 <= waits["alone_s"] < 0.5
    assert 0.01 <= waits["beside_s"] <= waits["longest_s"] < 1
    assert 0.01 <= waits["long_s"] < 1


def test_a_soak_of_an_even_server_finds_nothing(model: str, tmp_path: Path) -> None:
    record, _ = run(f"smollm3={model}", "--python", f"smollm3={play(tmp_path, pause=0.002)}", *SOAK)
    soak = record["measured"][f"smollm3={model}"]["soak"]
    assert (soak["errors"], soak["different_answers"], soak["streams"]) == (0, 0, 4)
    assert soak["answers"] >= 8
    assert soak["tokens_per_s"] > 0
    assert abs(soak["rss_drift"]) < 0.5
    assert soak["fds"][1] <= soak["fds"][0] + 2


@pytest.mark.parametrize(("odd", "field"), [("differs", "different_answers"), ("fails", "errors")])
def test_a_soak_counts_wrong_answers_and_errors(model: str, tmp_path: Path, odd: str, field: str) -> None:
    played = play(tmp_path, pause=0.002, odd=odd)
    record, _ = run(f"smollm3={model}", "--python", f"smollm3={played}", *SOAK)
    soak = record["measured"][f"smollm3={model}"]["soak"]
    assert 0 < soak[field] <= soak["answers"]
