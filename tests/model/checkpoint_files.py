"""Checkpoints written by hand, for tests of loading: any tensors, without the package's own saving."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tiny_models import tiny_config
from torch import Tensor

CAUSAL = "SmolLM3ForCausalLM"


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], *, made_for: str | None = CAUSAL, **changes: Any
) -> Path:
    """Write `tensors` and the tiny config with `changes`, as a model of the class `made_for` saves them."""
    folder.mkdir(parents=True, exist_ok=True)
    data = tiny_config(**changes).to_dict()
    data["architectures"] = None if made_for is None else [made_for]
    (folder / "config.json").write_text(json.dumps(data))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    """Set raw fields of a config.json, sensible or not."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
