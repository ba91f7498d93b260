"""The bitsandbytes package, imported on first use, quietly and from this machine only.

Out: the module, and what of it works where. It is an extra: everything else runs without it.
"""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from smollm3.errors import DeviceError, MissingDependencyError

INSTALL = "pip install 'smollm3[bitsandbytes]'"


@cache
def bitsandbytes() -> Any:
    """Return the bitsandbytes module. Raises MissingDependencyError."""
    with _import_from_this_machine():
        try:
            module = importlib.import_module("bitsandbytes")
        except ModuleNotFoundError as error:
            if error.name != "bitsandbytes":
                raise MissingDependencyError(
                    f"bitsandbytes needs {error.name}, which is missing: {INSTALL}"
                ) from None
            raise MissingDependencyError(
                f"4-bit and 8-bit loading needs the package bitsandbytes: {INSTALL}"
            ) from None
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_worth_saying)
    return module


@contextmanager
def _import_from_this_machine() -> Iterator[None]:
    """Keep bitsandbytes from fetching a compiled kernel from the hub while it is imported.

    On a CPU with AVX512-BF16 it does so where the package `kernels` is installed, and complains where it is
    not; its own library holds the same kernel. No code comes over the network here.
    """
    absent = object()
    saved = sys.modules.get("kernels", absent)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # makes `import kernels` fail
    complaint = logging.getLogger("bitsandbytes.backends.cpu.ops")
    complaint.addFilter(_is_worth_saying)
    try:
        yield
    finally:
        complaint.removeFilter(_is_worth_saying)
        if saved is absent:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = saved  # type: ignore[assignment]


def _is_worth_saying(record: logging.LogRecord) -> bool:
    # The first is answered above; the second is how LLM.int8 works and comes with every product.
    known = ("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be cast")
    return not str(record.msg).startswith(known)


def check_device(device: torch.device) -> None:
    """Raise DeviceError where bitsandbytes has no kernels for the device."""
    supported = set(getattr(bitsandbytes(), "supported_torch_devices", {"cpu", "cuda"}))
    if device.type not in supported:
        raise DeviceError(
            f"bitsandbytes has no kernels for {device.type}: choose among {', '.join(sorted(supported))}, or "
            "leave quantization_config out"
        )


def has_fused_cpu_kernel(out_features: int, in_features: int, blocksize: int) -> bool:
    """Whether this CPU multiplies 4-bit weights of this shape without unpacking them first.

    bitsandbytes starts its kernel on any shape and fails on those that do not divide.
    """
    functional = bitsandbytes().functional
    fits = out_features % 32 == 0 and in_features % blocksize == 0 and in_features % 2 == 0
    return (
        fits and hasattr(functional, "_convert_weight_packed_for_cpu") and bool(functional.has_avx512bf16())
    )
