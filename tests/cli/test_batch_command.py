"""`smollm3 batch`: what it prints, its exit codes, and Ctrl-C in the middle of a run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model, write_tokenizer

from smollm3.cli.main import main
from smollm3.model.smollm3 import SmolLM3ForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, which the native engine runs."""
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    model = tiny_model(SmolLM3ForCausalLM, hidden_size=64, intermediate_size=64, max_position_embeddings=4096)
    model.bfloat16().save_pretrained(path)
    return write_tokenizer(path)


def line(number: int, **more: Any) -> str:
    body = {"model": "tiny", "prompt": f"number {number}", "max_tokens": 8, "seed": number, **more}
    entry = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(entry) + "\n"


def answered(path: Path) -> dict[str, str]:
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    assert len({entry["custom_id"] for entry in entries}) == len(entries)
    return {
        entry["custom_id"]: entry["response"]["body"]["choices"][0]["text"]
        for entry in entries
        if entry["response"]["status_code"] == 200
    }


def test_the_path_is_the_answer_and_errors_are_the_exit_code(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(line(number) for number in range(6)))
    words = ["batch", str(source), str(target), "--model", str(folder)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n"
    assert "6 of 6 requests answered, 0 with an error; 48 tokens" in err
    assert len(answered(target)) == 6

    with source.open("a") as file:
        file.write(line(6, temperature=9))
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert "6 of 7 requests are answered already" in err
    assert "7 of 7 requests answered, 1 with an error" in err
    assert main(words) == 0, "nothing was left to ask"
    assert "7 of 7 requests answered\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--concurrency", "0"], "--concurrency 0: give 1 to 1024"),
        (["--engine", "gpu"], "engine='gpu'"),
    ],
)
def test_a_wrong_option_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(line(1))
    assert main(["batch", str(source), str(tmp_path / "out.jsonl"), "-m", str(folder), *words]) == 1
    assert said in capsys.readouterr().err


def test_without_the_extra_it_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]) == 1
    assert "pip install 'smollm3[serve]'" in capsys.readouterr().err


def test_ctrl_c_leaves_whole_lines_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(line(number, max_tokens=300) for number in range(200)))
    command = [sys.executable, "-m", "smollm3", "batch", str(source), str(target), "-m", str(folder)]
    process = subprocess.Popen([*command, "--concurrency", "4"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (target.exists() and target.stat().st_size > 3000):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    before = answered(target)
    assert 0 < len(before) < 200
    subprocess.run([*command, "--concurrency", "64"], check=True, capture_output=True, timeout=240)
    after = answered(target)
    assert len(after) == 200
    assert {name: after[name] for name in before} == before
