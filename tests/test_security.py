"""The known faults of loaders and servers of this kind (docs/security.md): tests by name; some are here."""

import ast
import json
import re
import socket
import tomllib
from pathlib import Path
from typing import Any

import gguf
import pytest
from tiny_models import tiny_model, write_tokenizer

from smollm3 import AutoModelForCausalLM, AutoTokenizer, SmolLM3ForCausalLM, SmolLM3Tokenizer, pipeline
from smollm3.checkpoint.gguf_header import read_header
from smollm3.errors import TemplateError
from smollm3.native.matrix import KIND_W4, KIND_W6, KIND_W8, Layout
from smollm3.native.quantize import packed_size

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
CHAT = [{"role": "user", "content": "hi"}]
ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(SmolLM3ForCausalLM).save_pretrained(tmp_path)
    return write_tokenizer(tmp_path)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_case_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (.+?) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    rows = [(first, cell) for first, cell in rows if cell != "tests"]
    assert [int(first) for first, _ in rows if first.isdigit()] == list(range(1, 53))
    assert len(rows) > 52 + 10
    for number, cell in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", cell)
        assert named, f"case {number} names no test"
        for file, test in named:
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
                number,
                test,
            )


def test_dependencies_with_known_holes_are_below_what_is_asked_for() -> None:
    """Cases 1, 2, 10, 38 and 39: torch before 2.10, jinja2 before 3.1.6, and what reads HTTP."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"starlette>=0.49.1", "h11>=0.16"} <= set(project["optional-dependencies"]["serve"])
    assert "torch>=2.10" in project["dependencies"]
    assert "jinja2>=3.1.6" in project["dependencies"]


def test_a_local_folder_is_loaded_without_the_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 5: nothing in a config makes the loader fetch code."""

    def refuse(*where: Any, **how: Any) -> Any:
        raise AssertionError(f"the network was asked for {where}")

    evil = {
        "_attn_implementation_internal": "evil/kernel",
        "auto_map": {"AutoModelForCausalLM": "evil/repo--m.M"},
    }
    rewrite(folder / "config.json", **evil, attn_implementation="evil/kernel", trust_remote_code=True)
    rewrite(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil/repo--t.T", None]})
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("Paris", return_tensors="pt").input_ids
    assert model.attn_implementation == "sdpa"
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, ids.shape[1] + 2)


def test_a_config_cannot_point_at_code_even_by_its_stored_names(folder: Path) -> None:
    """Cases 5 and 6: what was inert on loading is not written again either."""
    rewrite(folder / "config.json", auto_map={"AutoModel": "evil.M"}, trust_remote_code=True)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder / "again")
    assert (
        not {"auto_map", "trust_remote_code"}
        & json.loads((folder / "again" / "config.json").read_text()).keys()
    )


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "gguf"])
def test_templates_from_every_place_run_in_the_sandbox(place: str, folder: Path, small_model: Path) -> None:
    """Case 8: the template of a file, of a config and of GGUF metadata."""
    if place == "gguf":
        metadata = {**read_header(small_model).metadata, "tokenizer.chat_template": ESCAPE}
        tokenizer = SmolLM3Tokenizer.from_gguf(metadata)
    else:
        if place == "tokenizer_config.json":
            rewrite(folder / place, chat_template=ESCAPE)
        else:
            (folder / place).write_text(ESCAPE)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with pytest.raises(TemplateError, match="unsafe"):
            pipeline("text-generation", model=folder)(CHAT, max_new_tokens=1)
    with pytest.raises(TemplateError, match="unsafe"):
        tokenizer.apply_chat_template(CHAT, tokenize=False)


@pytest.mark.parametrize(("kind", "bits"), [(KIND_W4, 4), (KIND_W6, 6), (KIND_W8, 8)])
def test_sizes_of_native_matrices_are_not_cut_to_32_bits(kind: int, bits: int) -> None:
    """Case 16: 2^32 weights and more, in a matrix that no memory is asked for."""
    rows, cols = 2**18, 2**15
    assert (
        packed_size(Layout(kind, 64, zero=1 << bits - 1), rows, cols) == rows * cols * (bits * 64 + 16) // 512
    )


def test_the_library_that_reads_gguf_blocks_is_given_checked_bytes_only() -> None:
    """Cases 14 to 17: the package's own header reader decides; gguf's file reader is not used."""
    sources = "\n".join(path.read_text() for path in (ROOT / "smollm3").rglob("*.py"))
    assert hasattr(gguf, "GGUFReader")
    assert "GGUFReader" not in sources
