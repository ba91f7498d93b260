"""docs/cli.md holds the --help texts, every command and field; `UPDATE=1` writes the help texts anew."""

import os
import re
from pathlib import Path

import pytest

from smollm3.cli.commands import COMMANDS
from smollm3.cli.generate import as_record
from smollm3.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
PLACE = re.compile(r"<!-- help: (?P<words>.*?)-->\n(?:```\n(?P<text>.*?)```\n)?", re.DOTALL)


def help_text(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--help"]) == 0
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"


def test_the_help_on_the_page_is_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = PAGE.read_text(encoding="utf-8")

    def fill(place: re.Match[str]) -> str:
        words = place["words"].split()
        return f"<!-- help: {' '.join([*words, ''])}-->\n```\n{help_text(words, capsys)}```\n"

    expected = PLACE.sub(fill, page)
    if os.environ.get("UPDATE"):
        PAGE.write_text(expected, encoding="utf-8")
    assert page == expected or os.environ.get("UPDATE"), "run the tests of docs/cli.md with UPDATE=1"
    assert [match["words"].split() for match in PLACE.finditer(page)] == [
        [],
        ["chat"],
        ["generate"],
        ["info"],
        ["quantize"],
        ["export"],
        ["batch"],
        ["prompt-cache"],
        ["serve"],
        ["bench"],
    ]


def test_every_slash_command_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`{name}" not in page] == []


def test_every_field_of_the_json_is_on_the_page() -> None:
    from smollm3.cli.answer import Answer

    page = PAGE.read_text(encoding="utf-8")
    record = as_record(Answer(num_prompt=1), "m", 0.0)
    names = [*record, *record["usage"], *record["timings"]]
    assert [name for name in names if f"`{name}`" not in page] == []
