"""A model's name into a path: a local folder or file, a short name, or a repository of the hub.

Fetches only data (JSON, safetensors, templates, vocabularies), never pickles and never code. The one module
below the command line that reads environment variables: SMOLLM3_CACHE and XDG_CACHE_HOME here, HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and the like by huggingface_hub.
"""

import difflib
import os
import re
from pathlib import Path

from smollm3.checkpoint.small_models import SMALL_MODELS, fetch_small_model, similar_names
from smollm3.errors import ModelNotFoundError

DEFAULT_MODEL = "HuggingFaceTB/SmolLM3-3B"
SMALL_MODEL = "smollm2-135m"
WEIGHT_PATTERNS = ["*.safetensors", "*.safetensors.index.json"]
DATA_PATTERNS = ["*.json", "*.jinja", "*.txt", *WEIGHT_PATTERNS]
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def cache_folder() -> Path:
    """Return where short-named models are kept: $SMOLLM3_CACHE, else smollm3 in the user's cache folder."""
    if chosen := os.environ.get("SMOLLM3_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smollm3"


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    weights: bool = True,
) -> Path:
    """Return the folder or .gguf file that a name stands for, downloading it where that is needed.

    Args:
        name_or_path: a folder, a .gguf file, a short name (`smollm2-135m`) or a repository (`owner/name`).
        revision: branch, tag or commit of a repository.
        weights: False fetches the configuration and tokenizer of a repository without its weights.

    Raises:
        ModelNotFoundError: nothing by that name here, in the cache or within reach.
    """
    name = os.fspath(name_or_path)
    if not name.strip():
        raise ModelNotFoundError(f"the model's name is empty: give a folder, {SMALL_MODEL} or owner/name")
    path = Path(name).expanduser()
    if path.exists():
        return _inside(path, subfolder)
    if name in SMALL_MODELS:
        return fetch_small_model(name, cache_folder(), local_files_only=local_files_only)
    if not _REPOSITORY.fullmatch(name) or name.endswith((".gguf", ".safetensors")):
        raise ModelNotFoundError(f"{name} does not exist here{_suggestion(path)}")
    folder = _snapshot(name, revision, cache_dir, token, local_files_only, subfolder, weights)
    return _inside(folder, subfolder)


def _inside(path: Path, subfolder: str) -> Path:
    if not subfolder:
        return path
    inner = (path / subfolder).resolve()
    if not inner.is_relative_to(path.resolve()) or not inner.is_dir():
        raise ModelNotFoundError(f"{path} has no subfolder {subfolder!r}")
    return inner


def _suggestion(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f": its folder {path.parent} is not there either"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f": did you mean {path.parent / close[0]}?" if close else f": nothing like it is in {path.parent}"


def _snapshot(
    name: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
    subfolder: str,
    weights: bool,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    patterns = DATA_PATTERNS if weights else [p for p in DATA_PATTERNS if p not in WEIGHT_PATTERNS]
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=[prefix + pattern for pattern in patterns],
        )
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{name} is gated: accept its terms on the hub and pass token=..."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(f"{name} is no repository of the hub{_meant(name)}") from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{name} has no revision {revision!r} on the hub") from error
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"{name} is neither a path here nor a name of the hub{_meant(name)}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        why = "local_files_only is set" if local_files_only else "the hub cannot be reached"
        raise ModelNotFoundError(
            f"{name} is not in the cache and {why}{_meant(name)}; `{SMALL_MODEL}` is a small model that "
            "comes from PyPI instead"
        ) from error
    return Path(folder)


def _meant(name: str) -> str:
    close = similar_names(name)
    return f": did you mean {close[0]}?" if close else ""
