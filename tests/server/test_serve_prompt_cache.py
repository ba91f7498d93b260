"""`smollm3 serve --prompt-cache`: a first request finds the past, whatever its key; wrong files: one line."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_models import tiny_model, write_tokenizer

from smollm3.cli.main import main
from smollm3.model.smollm3 import SmolLM3ForCausalLM

SYSTEM = "You are the clerk of the harbour. " * 8
URL = re.compile(r"serving .* at (http://127\.0\.0\.1:\d+)/v1 ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that the native engine runs."""
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    tiny_model(SmolLM3ForCausalLM, hidden_size=64, intermediate_size=64).bfloat16().save_pretrained(path)
    return write_tokenizer(path)


def ask_first(folder: Path, *options: str, keys: tuple[str, ...] = ("none",)) -> list[dict[str, Any]]:
    """Start a server, send one request per key, stop it; return the answers."""
    command = [
        sys.executable,
        "-m",
        "smollm3",
        "serve",
        str(folder),
        "--port",
        "0",
        "--threads",
        "1",
        *options,
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            ready = URL.match(process.stdout.readline())
            assert ready
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Where is it?"}]
            body = {"model": "tiny", "messages": messages, "max_tokens": 12, "temperature": 1, "seed": 5}
            answers = []
            for key in keys:
                headers = {"Authorization": f"Bearer {key}"}
                with httpx.Client(base_url=ready[1], trust_env=False, headers=headers, timeout=60) as client:
                    reply = client.post("/v1/chat/completions", json=body)
                    assert reply.status_code == 200, reply.text
                    answers.append(reply.json())
            return answers
        finally:
            process.kill()


def test_the_first_request_finds_the_past_and_answers_the_same(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    assert main(["prompt-cache", str(folder), "--system", SYSTEM, "-o", str(saved)]) == 0
    (plain,) = ask_first(folder)
    (loaded,) = ask_first(folder, "--prompt-cache", str(saved))
    assert loaded["choices"] == plain["choices"]
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    cached = loaded["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0.8 * loaded["usage"]["prompt_tokens"]

    keys = ("first", "second")
    options = ["--cache-per-key", *(word for key in keys for word in ("--api-key", key))]
    for answer in ask_first(folder, "--prompt-cache", str(saved), *options, keys=keys):
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
        assert answer["choices"] == plain["choices"]


def test_a_file_that_does_not_fit_ends_the_start_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved"
    assert main(["prompt-cache", str(folder), "--system", "a", "-o", str(saved)]) == 0
    capsys.readouterr()
    words = ["serve", str(folder), "--port", "0", "--prompt-cache"]
    for file, more, said in (
        (saved, ["--kv-bits", "8"], "kv_bits '16', not '8'"),
        (folder / "model.safetensors", [], "is no prompt cache"),
        (tmp_path / "missing", [], "cannot be read: No such file"),
    ):
        assert main([*words, str(file), *more]) == 1
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
