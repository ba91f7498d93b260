"""`smollm3 serve`: a model behind a socket, with OpenAI's interface, until a signal.

One line on stdout says that it is ready and where; the log goes to stderr. What cannot work (a port in use, a
package that is missing) is said before any weight is read.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3.cli.model_facts import gigabytes
from smollm3.cli.options import LoadOptions
from smollm3.errors import MissingDependencyError, ParameterError

if TYPE_CHECKING:
    from smollm3.cli.loading import Loaded
    from smollm3.server.service import Service
    from smollm3.server.settings import Access, Limits

PACKAGES = ("starlette", "uvicorn", "h11", "pydantic", "llguidance")
KEY_VARIABLE = "SMOLLM3_API_KEY"
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class ServeOptions:
    """What was typed, beside the model: where to serve, with what memory, and whom."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    engine: str = "auto"
    threads: int | None = None
    kv_bits: int = 16
    kv_memory: str | None = None
    max_model_len: int | None = None
    prompt_lookup: bool | None = None
    ui: bool = False
    api_keys: Sequence[str] = ()
    api_key_file: Path | None = None
    cache_per_key: bool = False
    allowed_hosts: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    log_format: str = "json"
    log_prompts: bool = False
    prompt_caches: Sequence[Path] = ()
    replicas: int | None = None
    ray_address: str | None = None


def run_serve(load_options: LoadOptions, options: ServeOptions, **limit_values: float) -> int:
    """Serve until a signal and return the exit code."""
    need_packages(PACKAGES, "smollm3 serve", "smollm3[serve]")
    if options.ray_address is not None and options.replicas is None:
        raise ParameterError("--ray-address is where --replicas run: say how many")
    keys = read_keys(options)
    from smollm3.server.settings import Limits, access_for

    if options.log_format not in ("json", "text"):
        raise ParameterError(f"--log-format {options.log_format!r}: give json or text")
    limits = Limits(**limit_values)  # type: ignore[arg-type]
    access = access_for(
        options.host,
        api_keys=keys,
        cache_per_key=options.cache_per_key,
        allowed_hosts=tuple(options.allowed_hosts),
        cors_origins=tuple(options.cors_origins),
    )
    if options.replicas is not None:
        from smollm3.cli.serve_replicas import run_serve_replicas

        return run_serve_replicas(load_options, options, limits, access)
    return _run_here(load_options, options, limits, access)


def need_packages(names: Sequence[str], what: str, extra: str) -> None:
    """Raise MissingDependencyError if a package is not installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise MissingDependencyError(f"{what} needs {', '.join(missing)}: pip install '{extra}'")


def _run_here(load_options: LoadOptions, options: ServeOptions, limits: "Limits", access: "Access") -> int:
    """Serve in this process."""
    from smollm3.server.run import bind, serve

    with bind(options.host, options.port) as listener:
        loaded, service = load_service(load_options, options, limits, access)
        from smollm3.server.app import build_app
        from smollm3.server.log import setup_logging
        from smollm3.server.run import url_of

        setup_logging("text" if options.log_format == "text" else "json")
        app = build_app(service, access=access, limits=limits, ui=options.ui)

        def ready() -> None:
            print(ready_line(loaded, service, url_of(listener), options), flush=True)

        return serve(app, service, listener, limits, ready)


def load_service(
    load_options: LoadOptions,
    options: ServeOptions,
    limits: "Limits",
    access: "Access",
    memory_share: float = 1.0,
) -> tuple["Loaded", "Service"]:
    """Load the model, and the prompt caches; `memory_share` of this machine's memory is for this process."""
    from smollm3.cli.loading import load
    from smollm3.server.allocator import share_arenas
    from smollm3.server.build import ServiceOptions, build_service

    kv_memory = None if options.kv_memory is None else read_bytes(options.kv_memory)
    share_arenas()
    loaded = load(load_options)
    service = build_service(
        loaded.model,
        loaded.tokenizer,
        options.served_model_name or loaded.name,
        ServiceOptions(
            threads=options.threads,
            kv_bits=options.kv_bits,
            kv_memory=kv_memory,
            max_model_len=options.max_model_len,
            max_requests=limits.max_requests,
            engine=options.engine,
            prompt_lookup=options.prompt_lookup,
            memory_share=memory_share,
        ),
    )
    service.log_prompts = options.log_prompts
    _load_pasts(loaded, service, options, access)
    return loaded, service


def _load_pasts(loaded: "Loaded", service: "Service", options: ServeOptions, access: "Access") -> None:
    """Load the prompt caches, for requests of every key."""
    from smollm3.model.prompt_cache import open_prompt_cache
    from smollm3.server.guard import cache_salts

    for path in options.prompt_caches:
        cache = open_prompt_cache(path, loaded.model, options.kv_bits)
        cache.load_into(service.engine.runner, cache_salts(access))


def ready_line(loaded: "Loaded", service: "Service", url: str, options: ServeOptions) -> str:
    """Say in one line what is served, where, and on what."""
    return served_line(service.model_id, url, facts_of(loaded, service, options), options)


def served_line(model_id: str, url: str, facts: str, options: ServeOptions) -> str:
    """Say in one line what is served and where; `facts` come from `facts_of`."""
    page = f", page at {url}/" if options.ui else ""
    return f"serving {model_id} at {url}/v1 ({facts}{page})"


def facts_of(loaded: "Loaded", service: "Service", options: ServeOptions) -> str:
    """Say what computes, and in how much memory."""
    from smollm3.server.build import cache_bytes_per_id

    room = service.engine.runner.cache_tokens_total
    kind, cache = f"torch on {loaded.model.device}", ""
    if room is not None:
        size = room * cache_bytes_per_id(loaded.model, options.kv_bits)
        kind, cache = "native engine", f", KV cache up to {gigabytes(size)}"
    weights = gigabytes(loaded.model.get_memory_footprint())
    return f"{kind}, weights {weights}{cache}"


def read_keys(options: ServeOptions) -> tuple[str, ...]:
    """Return the API keys: typed, from the file (one a line, # begins a comment), from the environment."""
    keys = list(options.api_keys)
    if options.api_key_file is not None:
        try:
            lines = options.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise ParameterError(f"--api-key-file {options.api_key_file}: {reason}") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ParameterError(f"--api-key-file {options.api_key_file} has no key: write one a line")
        keys += found
    if KEY_VARIABLE in os.environ:
        keys.append(os.environ[KEY_VARIABLE])
    return tuple(dict.fromkeys(keys))


def read_bytes(text: str) -> int:
    """Read a size such as 2GB, 512MiB or 1000000."""
    number = text.strip().lower().rstrip("bikmg")
    unit = text.strip().lower()[len(number) :]
    try:
        size = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ParameterError(f"--kv-memory {text!r}: give a size such as 2GB or 512MiB")
    return size
