"""What from_pretrained accepts, checked before a file is opened or downloaded.

In: arguments as callers and transformers spell them. Out: where to look, which dtype, which fields of the
config to override; or one line that names the argument. Knows no tensor of a checkpoint.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from smollm3.errors import ConfigError, ParameterError
from smollm3.model.config import SmolLM3Config

WHERE = ("revision", "cache_dir", "token", "local_files_only", "subfolder")
HOW = (
    "dtype",
    "torch_dtype",
    "device_map",
    "attn_implementation",
    "quantization_config",
    "config",
    "ignore_mismatched_sizes",
)
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
# Switches of transformers with one meaning here: the refused value, and why.
_SWITCHES = {
    "trust_remote_code": (True, "no code of a checkpoint is ever run"),
    "use_safetensors": (False, "it asks for pickles, which are never loaded"),
    "low_cpu_mem_usage": (False, "weights always stream in one by one"),
}
# Arguments of transformers that are spelled otherwise here.
_INSTEAD = {
    "load_in_4bit": "pass quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
    "load_in_8bit": "pass quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "use_flash_attention_2": "pass attn_implementation='flash_attention_2'",
    "use_auth_token": "pass token",
    "device": "pass device_map",
    "max_memory": "the model stays on one device: pass device_map",
    "offload_folder": "the model stays on one device: pass device_map",
}
_FIELDS = frozenset(SmolLM3Config.__dataclass_fields__) - {"extra"}


def split_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return where to look for the checkpoint, and the fields of its config to override.

    Raises ParameterError for a refused switch, and for an argument that is neither, with the closest one.
    """
    where: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in _SWITCHES:
            refused, reason = _SWITCHES[name]
            if value is not None and bool(value) is refused:
                raise ParameterError(f"{name}={value!r} is refused, {reason}: leave it out")
        elif name in WHERE:
            where[name] = value
        elif name in _FIELDS:
            overrides[name] = value
        else:
            raise ParameterError(f"from_pretrained has no argument {name!r}: {_way_out(name)}")
    return where, overrides


def _way_out(name: str) -> str:
    if name in _INSTEAD:
        return _INSTEAD[name]
    close = get_close_matches(name, [*HOW, *WHERE, *sorted(_FIELDS)], n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"it takes {', '.join((*HOW, *WHERE))} and fields of the config"


def asked_dtype(dtype: Any, torch_dtype: Any) -> torch.dtype | None:
    """Return the dtype given under either name; None where it is the checkpoint's own ("auto")."""
    found = [_read_dtype(name, value) for name, value in (("dtype", dtype), ("torch_dtype", torch_dtype))]
    if dtype is not None and torch_dtype is not None and found[0] != found[1]:
        raise ParameterError(
            f"dtype={dtype} and torch_dtype={torch_dtype} are one argument and disagree: give one of them"
        )
    return found[0] or found[1]


def _read_dtype(name: str, value: Any) -> torch.dtype | None:
    if value is None or (isinstance(value, str) and value == "auto"):
        return None
    dtype = DTYPES.get(str(value).removeprefix("torch.")) if isinstance(value, str | torch.dtype) else None
    if dtype is None:
        raise ParameterError(f"{name}={value!r}: give 'auto' or one of {', '.join(DTYPES)}")
    return dtype


def read_config(
    given: SmolLM3Config | None, stored: Mapping[str, Any], overrides: Mapping[str, Any], path: Path
) -> SmolLM3Config:
    """Return a config of one's own: the given one, else the checkpoint's, with the overrides.

    Raises ConfigError, which names the checkpoint, and ParameterError for a config of another kind.
    """
    if given is not None and not isinstance(given, SmolLM3Config):
        raise ParameterError(
            f"config is a {type(given).__name__}: give a SmolLM3Config, as AutoConfig gives it"
        )
    try:
        config = SmolLM3Config.from_dict(stored if given is None else given.to_dict(), **overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if given is not None and config.attn_implementation is None:
        config.attn_implementation = given.attn_implementation  # of the run, and therefore not in the dict
    return config
