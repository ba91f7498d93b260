"""The house rules, held by the tree itself: imports go down, files stay small, nothing runs at import."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import smollm3

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "smollm3"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"errors"},
    {"ops"},
    {"text"},
    {"checkpoint"},
    {"native"},
    {"quantization"},
    {"engine"},
    {"model"},
    {"tokenization", "batch_encoding", "streamers", "completion", "auto", "pipelines"},
    {"server"},
    {"cli"},
    {"__init__", "__main__"},
]
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
READS_ENVIRONMENT = {"cli", "checkpoint/hub.py"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The layer's name of a module: `smollm3.text.parser` -> `text`, `smollm3` -> `__init__`."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            continue
        if not inside_functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from statements(child, inside_functions=inside_functions)


def imports(path: Path, *, inside_functions: bool) -> set[str]:
    """The modules a file imports, by full name; type-checking blocks left out."""
    known = {module_name(source) for source in SOURCES}
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text()), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path: Path) -> None:
    here = part_of(module_name(path))
    assert here in HEIGHT, f"{here} belongs to no layer: add it to LAYERS and to docs/architecture.md"
    own = [m for m in imports(path, inside_functions=True) if m.split(".")[0] == "smollm3" and m != "smollm3"]
    upward = [module for module in own if HEIGHT[part_of(module)] > HEIGHT[here]]
    assert not upward, f"{path.name} imports upward: {upward}"


def test_no_import_cycles() -> None:
    graph = {module_name(path): imports(path, inside_functions=False) for path in SOURCES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, "import cycle: " + " -> ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        for imported in graph.get(module, ()):
            if imported in graph and imported != "smollm3":
                visit(imported, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path.name} is longer than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_something_and_modules_open_with_a_docstring(path: Path) -> None:
    assert path.stem not in {"utils", "common", "helpers", "misc", "base", "manager"}
    text = path.read_text()
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{path.name} opens without a docstring"
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_environment_is_read_in_two_places_only(path: Path) -> None:
    relative = path.relative_to(PACKAGE).as_posix()
    if not any(relative.startswith(place) for place in READS_ENVIRONMENT):
        assert not re.search(
            r"\bos\.(environ|getenv)\b|\bfrom os import .*(environ|getenv)", path.read_text()
        )


def test_no_pickle_and_no_remote_code_anywhere() -> None:
    forbidden = re.compile(r"\btorch\.load\(|\bimport pickle\b|\bpickle\.load|\beval\(|\bexec\(|\bmarshal\b")
    # `.eval()` switches a module to inference and `model.eval` runs no text: only the builtins are meant.
    for path in SOURCES:
        text = re.sub(r"\.eval\(", ".inference(", path.read_text())
        assert not forbidden.search(text), f"{path.name}: {forbidden.search(text)}"


def test_text_and_command_line_help_bring_no_torch_along() -> None:
    text_modules = [module_name(path) for path in SOURCES if part_of(module_name(path)) == "text"]
    code = (
        "import sys, importlib, smollm3\n"
        "assert 'torch' not in sys.modules\n"
        f"[importlib.import_module(name) for name in {text_modules!r}]\n"
        "assert 'torch' not in sys.modules, 'text imports torch'\n"
        "import smollm3.cli.main\n"
        "assert 'torch' not in sys.modules, 'the command line imports torch before it is needed'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names_are_the_documented_ones() -> None:
    documented = re.search(
        r"## Public names\n(.*?)\n## ", (ROOT / "docs/architecture.md").read_text(), re.DOTALL
    )
    assert documented, "docs/architecture.md has no section 'Public names'"
    assert sorted(set(re.findall(r"`(\w+)`", documented.group(1)))) == sorted(smollm3.__all__)
    for name in smollm3.__all__:
        assert getattr(smollm3, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = smollm3.no_such_name


def test_the_documented_tree_is_the_tree() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for path in SOURCES:
        if path.name != "__init__.py" and path.parent != PACKAGE / "cli":
            assert f"`{path.relative_to(PACKAGE).as_posix()}`" in text, (
                f"docs/architecture.md misses {path.name}"
            )
    for name in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        assert (PACKAGE / name).is_file() or (ROOT / name).is_file(), f"docs/architecture.md names {name}"
