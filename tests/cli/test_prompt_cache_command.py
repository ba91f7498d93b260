"""`smollm3 prompt-cache`: what is saved, what is said, and that answers with it are those without."""

import json
from pathlib import Path

import pytest
from tiny_models import tiny_model, write_tokenizer

from smollm3.cli.main import main
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.tokenization import SmolLM3Tokenizer

SYSTEM = "You are the clerk of the harbour. " * 8
DATED = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ strftime_now('%d %B %Y') }}\n"
    "{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that the native engine runs."""
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    tiny_model(SmolLM3ForCausalLM, hidden_size=64, intermediate_size=64).bfloat16().save_pretrained(path)
    return write_tokenizer(path)


def with_template(folder: Path, target: Path, template: str) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    settings = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return target


def test_answers_with_the_file_are_those_without(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    saved = tmp_path / "saved"
    assert main(["prompt-cache", str(folder), "--system", SYSTEM, "-o", str(saved)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{saved}\n"
    tokenizer = SmolLM3Tokenizer.from_path(folder)
    beginning = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    assert err.startswith(f"{len(tokenizer.encode(beginning))} tokens, ")

    words = ["generate", "-m", str(folder), "--system", SYSTEM, "--max-new-tokens", "12"]
    words += ["-t", "1", "--seed", "3", "Where did she live?"]
    assert main(words) == 0
    expected = capsys.readouterr().out
    assert main([*words, "--prompt-cache", str(saved)]) == 0
    assert capsys.readouterr().out == expected
    assert main([*words, "--prompt-cache", str(saved), "--prompt-cache", str(folder / "config.json")]) == 1
    assert "config.json is truncated or no safetensors file" in capsys.readouterr().err


def test_messages_and_tools_are_part_of_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_template(
        folder, tmp_path / "model", TOOLS + DATED.replace(" {{ strftime_now('%d %B %Y') }}", "")
    )
    sizes = []
    (tmp_path / "system").write_text(SYSTEM)
    (tmp_path / "messages").write_text(json.dumps([{"role": "user", "content": "Paris"}]))
    (tmp_path / "tools").write_text(json.dumps([{"type": "function", "function": {"name": "ferry"}}]))
    words = [
        "prompt-cache",
        str(model),
        "-o",
        str(tmp_path / "saved"),
        "--system-file",
        str(tmp_path / "system"),
    ]
    for more in ([], ["--messages", str(tmp_path / "messages")], ["--tools", str(tmp_path / "tools")]):
        words += more
        assert main(words) == 0
        sizes.append(int(capsys.readouterr().err.split()[0]))
    assert sizes == sorted(set(sizes))


def test_a_template_that_prints_the_date_is_noted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_template(folder, tmp_path / "model", DATED)
    assert main(["prompt-cache", str(model), "--system", SYSTEM, "-o", str(tmp_path / "saved")]) == 0
    assert "note: this chat template prints the date" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --system, --system-file or --messages"),
        (["--system", "a", "--system-file", "b"], "exclude each other"),
        (["--system-file", "missing"], "--system-file missing: No such file"),
        (["--messages", "{folder}/config.json"], "give a JSON list"),
        (["--messages", "{folder}/model.safetensors"], "it is no UTF-8 text"),
        (["--system", SYSTEM * 9], "tokens, the model's context 512"),
        (["--system", "a", "-o", "missing/saved"], "missing is no folder"),
    ],
)
def test_what_cannot_be_saved_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    words = [word.replace("{folder}", str(folder)) for word in words]
    assert main(["prompt-cache", str(folder), "-o", str(tmp_path / "saved"), *words]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
