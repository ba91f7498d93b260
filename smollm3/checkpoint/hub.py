"""From the name of a model to files on this machine.

In: a path, a short name (`smollm2-135m`) or a hub repository. Out: the path of a folder or of a .gguf file.
This is the one place below the command line that reads environment variables; the hub's own (HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, ...) keep the meaning that huggingface_hub gives them.
"""

import difflib
import os
import re
import sys
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from smollm3.checkpoint.small_models import SMALL_MODELS, fetch
from smollm3.errors import ModelNotFoundError, ParameterError

DEFAULT_MODEL = "HuggingFaceTB/SmolLM3-3B"
SMALL_MODEL = "smollm2-135m"
# Never *.bin, *.pt, *.pkl or *.py: what is not downloaded cannot be run.
_DESCRIPTION_PATTERNS = ("*.json", "*.jinja", "*.txt")
_WEIGHT_PATTERNS = ("*.safetensors",)


@dataclass(frozen=True)
class _Place:
    """Where on the hub and in its cache; in huggingface_hub's words."""

    revision: str | None
    cache_dir: str | None
    token: str | bool | None
    local_files_only: bool


def cache_folder() -> Path:
    """Return where small models are kept: SMOLLM3_CACHE, else `smollm3` under XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("SMOLLM3_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "smollm3"


def resolve(
    name_or_path: str | PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    weights: bool = True,
) -> Path:
    """Return the folder or .gguf file that `name_or_path` stands for, downloading what is not here yet.

    A path wins over a short name, a short name over the hub; `owner/name/file.gguf` takes one file of a
    repository. `weights=False` leaves the hub's weight files where they are: a tokenizer needs none.
    Raises ModelNotFoundError with the way out.
    """
    name = os.fspath(name_or_path)
    if not isinstance(name, str) or not name.strip():
        raise ParameterError(
            f"{name_or_path!r} is no model: give a path, a short name such as {SMALL_MODEL} or a hub name"
        )
    part = _checked_subfolder(subfolder)
    local = Path(name).expanduser()
    if local.exists():
        return _with_subfolder(local, part)
    if name.lower() in SMALL_MODELS and not isinstance(name_or_path, Path):
        if revision not in (None, "main") or part:
            raise ParameterError(f"{name} is one file of a fixed version: leave revision and subfolder out")
        cache = cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
        return fetch(name.lower(), cache, local_files_only=local_files_only)
    if isinstance(name_or_path, Path) or _looks_like_path(name):
        raise ModelNotFoundError(f"there is no file or folder {name}{_neighbour(local)}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w./-]+\.gguf)?", name):
        raise ModelNotFoundError(
            f"{name!r} is no file or folder here and no model name{_close(name)}: hub names read owner/name, "
            f"short names are {', '.join(SMALL_MODELS)}"
        )
    place = _Place(revision, None if cache_dir is None else os.fspath(cache_dir), token, local_files_only)
    return _from_hub(name, part, weights, place)


def _checked_subfolder(subfolder: str | None) -> str:
    part = PurePosixPath(subfolder or "")
    if part.is_absolute() or ".." in part.parts or "\\" in str(part):
        raise ParameterError(f"subfolder {subfolder!r} leaves the model's folder: give a folder inside it")
    return "" if str(part) == "." else str(part)


def _with_subfolder(path: Path, subfolder: str) -> Path:
    if subfolder and not (path / subfolder).is_dir():
        raise ModelNotFoundError(f"{path} has no folder {subfolder!r}: give a subfolder that exists")
    return path / subfolder if subfolder else path


def _looks_like_path(name: str) -> bool:
    gguf_of_repository = name.endswith(".gguf") and name.count("/") >= 2
    too_deep = name.count("/") > 1 and not gguf_of_repository
    lone_gguf = name.endswith(".gguf") and not gguf_of_repository
    return name[0] in "./~\\" or "\\" in name or name.endswith("/") or too_deep or lone_gguf


def _neighbour(path: Path) -> str:
    """Say where the path stops being right, and what stands there under a similar name."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        names = []
    close = difflib.get_close_matches(path.name, names, n=1)
    return (
        f": did you mean {parent / close[0]}?" if close else f": {parent} holds nothing called {path.name!r}"
    )


def _close(name: str) -> str:
    known = {
        key.lower(): full
        for full in (*SMALL_MODELS, DEFAULT_MODEL)
        for key in (full, full.rpartition("/")[2])
    }
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {known[close[0]]}?)" if close else ""


def _from_hub(name: str, subfolder: str, weights: bool, place: _Place) -> Path:
    """Download from the hub, or take what its cache has. Turns the hub's many errors into one line."""
    import huggingface_hub
    from huggingface_hub import errors

    repository = "/".join(name.split("/")[:2])
    file = name[len(repository) + 1 :]
    inside = f"{subfolder}/" if subfolder else ""
    kinds = (file,) if file else _DESCRIPTION_PATTERNS + (_WEIGHT_PATTERNS if weights else ())
    try:
        # snapshot_download even for one file: without a network it answers at once, hf_hub_download retries.
        snapshot = huggingface_hub.snapshot_download(
            repository,
            allow_patterns=[inside + kind for kind in kinds],
            # fnmatch's * crosses slashes: without this, copies of the weights in subfolders would come along.
            ignore_patterns=[f"{inside}*/*.safetensors"],
            revision=place.revision,
            cache_dir=place.cache_dir,
            token=place.token,
            local_files_only=place.local_files_only,
            tqdm_class=_quiet_bar(),
        )
    except errors.GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repository} is gated: accept its terms on its page, then run `hf auth login` or pass token"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{repository} has no revision {place.revision!r}: leave it out for main"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"the hub has no model {repository}{_close(repository)}, or it is private: check the name, or "
            "pass token"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFoundError(f"{name!r} is no valid hub name: hub names read owner/name") from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise ModelNotFoundError(_unreachable(name, place.local_files_only)) from error
    folder = _with_subfolder(Path(snapshot), subfolder)
    if file and not (folder / file).is_file():
        raise ModelNotFoundError(
            f"{repository} has no file {inside}{file}, or it was never downloaded: check the name"
        )
    return folder / file if file else folder


def _quiet_bar() -> Any:
    """The hub's progress bar, on a terminal only, after a second and gone when it is done."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class QuietBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs |= {"delay": 1, "leave": False}
            kwargs["disable"] = kwargs.get("disable") or not sys.stderr.isatty()
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    return QuietBar


def _unreachable(name: str, local_files_only: bool) -> str:
    from huggingface_hub import constants

    if local_files_only or constants.HF_HUB_OFFLINE:
        reason = "local_files_only" if local_files_only else "HF_HUB_OFFLINE"
        return (
            f"{name} is neither a folder here nor in the hub's cache, and {reason} forbids to download it: "
            f"allow it, or use the small model {SMALL_MODEL}"
        )
    return (
        f"{name} is neither a folder here nor in the hub's cache, and the hub cannot be reached: check the "
        f"network, give a local path, or use the small model {SMALL_MODEL} (a PyPI package)"
    )
