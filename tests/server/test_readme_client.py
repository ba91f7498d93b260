"""The programs for a server in README.md and docs/api.md, run as they stand."""

import re
from pathlib import Path

import pytest
from serving import Running

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_clients_program_knows_paris(
    page: str, small_server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (program,) = [block for block in blocks if "OpenAI(" in block]
    assert "http://127.0.0.1:8000" in program
    namespace: dict[str, object] = {}
    exec(compile(program.replace("http://127.0.0.1:8000", small_server.url), page, "exec"), namespace)
    namespace["client"].close()  # type: ignore[attr-defined]
    assert "Paris" in capsys.readouterr().out
