"""Every example runs on the small trained model and prints what it promises."""

import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smollm3 import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def folder(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in the format that loads fastest, without its sampling settings."""
    path = tmp_path_factory.mktemp("small")
    AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).save_pretrained(path)
    AutoTokenizer.from_pretrained(small_model).save_pretrained(path)
    return path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example in this process as `python examples/NAME.py FOLDER ...` would; return its output."""

    def run_example(name: str, *arguments: object, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", str(folder), *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        torch.manual_seed(0)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_every_example_is_tested() -> None:
    tests = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f'run("{example.stem}"' in tests, f"{example.name} has no test"


def test_pipeline_chat(run: Run) -> None:
    assert len(run("pipeline_chat", "--max-new-tokens", 6).split()) >= 3


def test_generate(run: Run) -> None:
    assert len(run("generate", "--max-new-tokens", 6).split()) >= 3


def test_chat_loop_remembers(run: Run) -> None:
    told = run("chat_loop", "--max-new-tokens", 8, stdin="What is the capital of France?\nAnd its river?\n")
    assert "Paris" in told
    assert told.count("you> ") == 3


def test_streaming_stops(run: Run) -> None:
    told = run("streaming", "--max-new-tokens", 16)
    assert "red" in told.lower()
    assert "tok/s, stop]" in told


def test_batch(run: Run) -> None:
    lines = run("batch", "--max-new-tokens", 4).splitlines()
    assert lines[0].startswith("The capital of France is Paris")
    assert len(lines) == 8


def test_tool_call_goes_there_and_back(run: Run) -> None:
    told = run("tool_call", "--max-new-tokens", 24)
    assert "call:   get_weather('Lagos')" in told
    assert "result: 31 degrees, sun" in told
    assert len(told.partition("answer: ")[2]) > 3


def test_quantized(run: Run) -> None:
    told = run("quantized", "--max-new-tokens", 3)
    assert "Paris" in told
    smaller, _, larger = told.splitlines()[0].partition(" MB, less than ")
    assert int(smaller) < int(larger.split()[0])


def test_classification_learns(run: Run) -> None:
    told = run("classification").splitlines()
    losses = [float(line.rpartition(" ")[2]) for line in told if line.startswith("step")]
    assert losses[-1] < losses[0]
    assert "'label': 'positive'" in told[-3]
    assert "'label': 'negative'" in told[-2]


def test_question_answering_learns(run: Run) -> None:
    told = run("question_answering").splitlines()
    assert [line.rpartition("'answer': ")[2] for line in told[1:]] == [
        "'London'}", "'1815'}", "'Copenhagen'}", "'1885'}", "'London'}",
    ]  # fmt: skip
