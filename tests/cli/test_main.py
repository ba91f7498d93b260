"""The command as it is typed: help without torch, exit codes, one line per error, quiet pipes."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import smollm3
from smollm3.cli import chat as chat_module
from smollm3.cli import generate as generate_module
from smollm3.cli import info as info_module
from smollm3.cli.main import main
from smollm3.cli.options import LoadOptions
from smollm3.cli.settings import Settings
from smollm3.errors import ConfigError

HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "tokenizers",
    "huggingface_hub",
    "jinja2",
    "gguf",
    "rich.markdown",
    "readline",
}


def smollm3_command(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("smollm3")), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )


@pytest.mark.parametrize("words", [[], ["chat"], ["generate"], ["info"]])
def test_help_imports_nothing_heavy(words: Sequence[str]) -> None:
    code = (
        "import sys\n"
        "from smollm3.cli.main import main\n"
        f"code = main({[*words, '--help']!r})\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)\n"
        "raise SystemExit(code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.startswith(f"Usage: smollm3 {' '.join([*words, '[OPTIONS]'])}")
    assert result.stderr == "[]\n"


def test_the_installed_command_and_the_module_are_one() -> None:
    result = smollm3_command("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"smollm3 {smollm3.__version__}\n", "")
    module = subprocess.run(
        [sys.executable, "-m", "smollm3", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert module.stdout == result.stdout
    assert importlib.metadata.version("smollm3") == smollm3.__version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sing"], "No such command 'sing'"),
        (["chat", "--colour"], "No such option: --colour"),
        (["chat", "a", "b"], "unexpected extra argument"),
        (["generate", "--max-new-tokens", "many", "hi"], "'--max-new-tokens'"),
        (["info", "--json", "--model"], "No such option: --model"),
    ],
)
def test_a_wrong_call_is_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Usage: smollm3" in captured.err


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) in (0, 2)  # click changed its mind about the code
    captured = capsys.readouterr()
    assert "Commands:" in captured.out + captured.err


def test_an_error_is_one_line_and_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConfigError("config.json:\n bad \x1b[2J field")

    monkeypatch.setattr(info_module, "run_info", fail)
    assert main(["info", "x"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: config.json: bad \\x1b[2J field\n")
    for words in (["--debug", "info", "x"], ["info", "--debug", "x"]):
        with pytest.raises(ConfigError):
            main(words)


def test_an_unexpected_error_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(info_module, "run_info", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == (
        "error: ZeroDivisionError: division by zero (unexpected: --debug shows where)\n"
    )
    with pytest.raises(ZeroDivisionError):
        main(["info", "--debug"])


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info_module, "run_info", stop)
    assert main(["info"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{Path(sys.executable).with_name('smollm3')} info --json | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert result.stderr == ""
    assert result.returncode in (0, 1)


class CalledError(Exception):
    """Carries what a command was called with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("called")
        self.called_with, self.named = args, kwargs


def called(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, words: list[str]) -> CalledError:
    def record(*args: Any, **kwargs: Any) -> None:
        raise CalledError(*args, **kwargs)

    monkeypatch.setattr(module, name, record)
    with pytest.raises(CalledError) as caught:
        main(["--debug", *words])
    return caught.value


@pytest.mark.parametrize(
    "words",
    [
        "chat M --torch_dtype auto --attn_implementation flash_attention_2 --device 0",
        "chat M --torch-dtype auto --attn-implementation flash_attention_2 --device 0",
        "chat --dtype=auto --attn_implementation=flash_attention_2 --device=0 M",
    ],
)
def test_the_page_s_chat_command_parses(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = called(monkeypatch, chat_module, "run_chat", words.split())
    assert call.called_with[0] == LoadOptions("M", "auto", "flash_attention_2", "0")
    assert call.called_with[1] == Settings()


def test_every_option_of_chat_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "chat M --dtype bfloat16 --attn-implementation eager --device cpu --quantize nf4 --revision main "
        "--local_files_only --template fixed -s Sys --think --hide-thinking --no-markdown --load f.json "
        "--max_new_tokens 7 --do-sample -t 0.5 --top_k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1 "
        "--presence-penalty 0.2 --frequency-penalty 0.3 --seed 4 --stop a --stop b"
    )
    call = called(monkeypatch, chat_module, "run_chat", words.split())
    assert call.called_with[0] == LoadOptions("M", "bfloat16", "eager", "cpu", "nf4", "main", True)
    assert call.called_with[1] == Settings(
        max_new_tokens=7, do_sample=True, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1,
        repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.3, seed=4, stop=("a", "b"),
        thinking=True, show_thinking=False, markdown=False,
    )  # fmt: skip
    assert call.named == {"template": "fixed", "system": "Sys", "load_from": Path("f.json")}


def test_every_option_of_generate_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "generate Hi -m M --no-think --greedy --raw --json -v --max-new-tokens 5 --hide-thinking"
    call = called(monkeypatch, generate_module, "run_generate", words.split())
    assert call.called_with[:2] == ("Hi", LoadOptions("M"))
    assert call.called_with[2] == Settings(
        max_new_tokens=5, do_sample=False, thinking=False, show_thinking=False
    )
    assert call.named == {"template": None, "system": None, "raw": True, "as_json": True, "verbose": True}


@pytest.mark.parametrize(
    "words", [["--temperature", "-1"], ["--top-p", "nan"], ["--max-new-tokens", "0"], ["--stop", ""]]
)
def test_sampling_options_are_checked_before_anything_is_loaded(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "run_generate", lambda *_, **__: pytest.fail("ran"))
    assert main(["generate", "hi", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_output_never_fails_on_an_encoding() -> None:
    result = smollm3_command("info", "--json", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert json.loads(result.stdout)["smollm3"] == smollm3.__version__
    assert (result.returncode, result.stderr) == (0, "")
