"""`smollm3 info`: this machine, or a model before it is loaded, as text or JSON.

In: a model's name or none. Out: facts on stdout. Reads headers and configs only, never weights.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smollm3.cli.machine import describe_machine, machine_lines
from smollm3.cli.model_facts import describe_model, model_lines
from smollm3.cli.terminal import escape_controls
from smollm3.model.config import SmolLM3Config


def run_info(model: str | None, *, revision: str | None, local_files_only: bool, as_json: bool) -> None:
    """Print what is known about `model`, or about this machine."""
    if model is None:
        facts = describe_machine()
        lines = machine_lines(facts)
    else:
        facts = read_model(model, revision=revision, local_files_only=local_files_only)
        lines = model_lines(facts)
    if as_json:
        print(json.dumps(facts))
    else:
        print(escape_controls("\n".join(lines)))
    sys.stdout.flush()


def read_model(name: str, *, revision: str | None = None, local_files_only: bool = False) -> dict[str, Any]:
    """Return the facts of a model: from its files' headers, or from its config where there are no weights."""
    from smollm3.checkpoint.hub import resolve

    path = resolve(name, revision=revision, local_files_only=local_files_only, weights=False)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        return describe_model(name, SmolLM3Config.from_json_file(path / "config.json"))
    return _from_headers(name, path)


def _from_headers(name: str, path: Path) -> dict[str, Any]:
    from smollm3.checkpoint.source import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        config = SmolLM3Config.from_dict(checkpoint.config)
        if config.quantization_config:
            return describe_model(name, config)  # codes have other shapes than the weights they stand for
        stored: Mapping[str, tuple[int, ...]] = {
            tensor: tuple(checkpoint.tensor_info(tensor)[0]) for tensor in checkpoint.names()
        }
        return describe_model(name, config, stored)
