"""README.md is true: its demo answers, its programs run, and its files and commands are there."""

import io
import re
import shlex
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, write_tokenizer

from smollm3 import SmolLM3ForCausalLM
from smollm3.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
# Programs that need a server are run in tests/server/test_readme_client.py.
PROGRAMS = [block for language, block in BLOCKS if language == "python" and "openai" not in block]


def test_the_demo_is_the_documented_one_and_knows_paris(
    small_model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, answer = next(block.splitlines() for _, block in BLOCKS if block.startswith("$ smollm3"))
    recipe = re.search(r"^demo:.*\n\t\$\(BIN\)/(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    assert shown == f"$ {recipe[1]}"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(shlex.split(recipe[1])[1:]) == 0
    assert capfd.readouterr().out.strip() == answer
    assert "Paris" in answer


@pytest.mark.parametrize("program", PROGRAMS, ids=["pipeline", "4-bit"])
def test_the_programs_run(program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As they stand, with a tiny model for the large one and without the GPU."""
    tiny_model(SmolLM3ForCausalLM, hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    on_this_machine = (
        program if torch.cuda.is_available() else program.replace("device_map=0", "device_map='auto'")
    )
    shorter = re.sub(r"max_new_tokens=\d+", "max_new_tokens=8", on_this_machine)
    exec(compile(shorter.replace("HuggingFaceTB/SmolLM3-3B", str(tmp_path)), "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_every_link_and_file_is_there() -> None:
    links = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    named = re.findall(r"`((?:smollm3|csrc)/[\w./]+)`", README)
    assert len(links) > 2
    assert len(named) > 2
    assert [name for name in [*links, *named] if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_links_of_the_docs_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [name for name in targets if "://" not in name and not (page.parent / name).exists()] == []
