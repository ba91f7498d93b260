"""BitsAndBytesConfig: how weights are to be quantised, under HF's names and with HF's defaults.

In: keyword arguments, or the `quantization_config` of a config.json. Out: checked fields, and the dict that
transformers writes and reads. Imports torch only when a config is made, and never bitsandbytes.
"""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from smollm3.errors import ConfigError, ParameterError

if TYPE_CHECKING:
    import torch

QUANT_METHOD = "bitsandbytes"
QUANT_TYPES = ("nf4", "fp4")
_COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
_STORAGE_DTYPES = ("uint8", "int8", "float16", "bfloat16", "float32", "float64")
_FLAGS = (
    "load_in_8bit",
    "load_in_4bit",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "bnb_4bit_use_double_quant",
)


@dataclass(frozen=True, init=False)
class BitsAndBytesConfig:
    """What bitsandbytes is asked to do with each linear layer.

    `load_in_4bit` (NF4 or FP4 in blocks of 64) and `load_in_8bit` (LLM.int8, a scale per row) exclude each
    other. Products are computed in `bnb_4bit_compute_dtype`; activation columns that reach
    `llm_int8_threshold` are kept out of int8. `llm_int8_skip_modules` names modules to leave alone, in 4-bit
    too; by default these are the output heads. Raises ParameterError.
    """

    load_in_8bit: bool
    load_in_4bit: bool
    llm_int8_threshold: float
    llm_int8_skip_modules: list[str] | None
    llm_int8_enable_fp32_cpu_offload: bool
    llm_int8_has_fp16_weight: bool
    bnb_4bit_compute_dtype: "torch.dtype"
    bnb_4bit_quant_type: str
    bnb_4bit_use_double_quant: bool
    bnb_4bit_quant_storage: "torch.dtype"

    def __init__(
        self,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        llm_int8_threshold: float = 6.0,
        llm_int8_skip_modules: list[str] | None = None,
        llm_int8_enable_fp32_cpu_offload: bool = False,
        llm_int8_has_fp16_weight: bool = False,
        bnb_4bit_compute_dtype: "torch.dtype | str | None" = None,
        bnb_4bit_quant_type: str = "fp4",
        bnb_4bit_use_double_quant: bool = False,
        bnb_4bit_quant_storage: "torch.dtype | str | None" = None,
        **unknown: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "unknown")}
        if unknown:
            raise ParameterError(_unknown_argument(next(iter(unknown))))
        given["bnb_4bit_compute_dtype"] = _dtype(
            "bnb_4bit_compute_dtype", bnb_4bit_compute_dtype, "float32", _COMPUTE_DTYPES
        )
        given["bnb_4bit_quant_storage"] = _dtype(
            "bnb_4bit_quant_storage", bnb_4bit_quant_storage, "uint8", _STORAGE_DTYPES
        )
        _check_flags(given)
        given["llm_int8_threshold"] = _threshold(llm_int8_threshold)
        given["llm_int8_skip_modules"] = _skip_modules(llm_int8_skip_modules)
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def quant_method(self) -> str:
        """The name under which a config.json files this kind of config."""
        return QUANT_METHOD

    def quantization_method(self) -> str | None:
        """Return llm_int8, nf4 or fp4; None where the config asks for nothing."""
        if self.load_in_8bit:
            return "llm_int8"
        return self.bnb_4bit_quant_type if self.load_in_4bit else None

    def is_quantizable(self) -> bool:
        """Whether the config asks for 4 or 8 bits at all."""
        return self.load_in_8bit or self.load_in_4bit

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Read the `quantization_config` of a config.json. Raises ConfigError or ParameterError."""
        method = stored.get("quant_method", QUANT_METHOD)
        if method != QUANT_METHOD:
            raise ConfigError(
                f"quantization_config has quant_method {method!r}: only {QUANT_METHOD!r} can be read"
            )
        given = {str(name): value for name, value in stored.items() if name != "quant_method"}
        for name in ("load_in_4bit", "load_in_8bit"):  # transformers writes each of them twice
            twin = given.pop(f"_{name}", given.get(name, False))
            if given.setdefault(name, twin) != twin:
                raise ConfigError(f"quantization_config says both yes and no to {name}: keep one")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return what transformers writes into config.json for the same arguments."""
        stored = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
            stored[name] = str(stored[name]).removeprefix("torch.")
        if self.llm_int8_skip_modules is not None:
            stored["llm_int8_skip_modules"] = list(self.llm_int8_skip_modules)
        twins = {f"_{name}": stored[name] for name in ("load_in_4bit", "load_in_8bit")}
        return {"quant_method": QUANT_METHOD, **twins, **stored}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the part of `to_dict` that differs from the defaults."""
        defaults = BitsAndBytesConfig().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the config as JSON, by default only what differs from the defaults."""
        chosen = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(chosen, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | PathLike[str]) -> None:
        """Write every field as JSON."""
        Path(json_file_path).write_text(self.to_json_string(use_diff=False), encoding="utf-8")


def _unknown_argument(name: str) -> str:
    names = [field.name for field in fields(BitsAndBytesConfig)]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(names)}"
    return f"BitsAndBytesConfig has no argument {name!r}: {hint}"


def _dtype(name: str, given: Any, default: str, choices: tuple[str, ...]) -> "torch.dtype":
    import torch

    text = str(default if given is None else given).removeprefix("torch.")
    if text not in choices or not (given is None or isinstance(given, str | torch.dtype)):
        raise ParameterError(f"{name}={given!r}: choose from {', '.join(choices)}")
    dtype: torch.dtype = getattr(torch, text)
    return dtype


def _check_flags(given: Mapping[str, Any]) -> None:
    for name in _FLAGS:
        if not isinstance(given[name], bool):
            raise ParameterError(f"{name}={given[name]!r}: give True or False")
    if given["load_in_4bit"] and given["load_in_8bit"]:
        raise ParameterError("load_in_4bit and load_in_8bit are both True: choose one")
    if given["bnb_4bit_quant_type"] not in QUANT_TYPES:
        raise ParameterError(
            f"bnb_4bit_quant_type={given['bnb_4bit_quant_type']!r}: choose from {', '.join(QUANT_TYPES)}"
        )


def _threshold(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
        raise ParameterError(
            f"llm_int8_threshold={given!r}: give a number from 0 (no outliers kept apart) up"
        )
    return float(given)


def _skip_modules(given: Any) -> list[str] | None:
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) and name for name in given):
        raise ParameterError(
            f"llm_int8_skip_modules={given!r}: give a list of module names, such as ['lm_head']"
        )
    return list(given)
