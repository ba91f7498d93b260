"""What this machine offers: versions, processor, accelerators, extras, and why something is missing.

In: nothing. Out: plain dicts and lists that print as text or JSON. Imports torch; reads no model.
"""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from smollm3 import __version__

# The instruction sets that decide how fast matrix products are, in the kernel's spelling.
_INSTRUCTION_SETS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
_PACKAGES = ("torch", "tokenizers", "safetensors", "huggingface_hub", "gguf", "jinja2")


def describe_machine() -> dict[str, Any]:
    """Return versions, devices and extras of this machine."""
    return {
        "smollm3": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: installed_version(name) for name in _PACKAGES},
        "cpu": describe_cpu(),
        "memory_bytes": total_memory(),
        "accelerators": describe_accelerators(),
        "native_engine": describe_native_engine(),
        "extras": describe_extras(),
    }


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None where it is missing; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return the processor's name, the cores this process may use, and its instruction sets."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux: what Python knows
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
    }


def total_memory() -> int | None:
    """Return the machine's memory in bytes, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def describe_accelerators() -> list[dict[str, Any]]:
    """Return one entry per device that --device takes besides cpu, or one that says why there is none."""
    import torch

    found: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            found.append({
                "device": f"cuda:{number}",
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "compute_capability": f"{properties.major}.{properties.minor}",
            })  # fmt: skip
    else:
        found.append({"device": "cuda", "missing": _why_no_cuda(torch.version.cuda)})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "memory_bytes": None})
    return found


def _why_no_cuda(built_for: str | None) -> str:
    if built_for is None:
        return "this torch is built without CUDA; --device cpu works"
    return f"torch is built for CUDA {built_for} but finds no NVIDIA driver or device; --device cpu works"


def describe_native_engine() -> dict[str, Any]:
    """Return the instruction set that the native CPU engine uses here, or why there is no such engine."""
    from smollm3.native.library import native_status

    status = native_status()
    if not status.available:
        return {"instruction_set": None, "missing": status.reason}
    return {"instruction_set": status.isa, "usable": list(status.isas), "missing": status.reason or None}


def describe_extras() -> list[dict[str, Any]]:
    """Return each optional package: its version, or how to get it, and what it is for."""
    extras = []
    for package, extra, purpose in (
        ("bitsandbytes", "bitsandbytes", "--quantize nf4, fp4, int8"),
        ("flash-attn", "flash-attn", "--attn-implementation flash_attention_2, on CUDA devices"),
        ("starlette", "serve", "smollm3 serve and smollm3 batch"),
        ("llguidance", "serve", "answers held to JSON, a schema, a regex or a grammar"),
    ):
        version = installed_version(package)
        missing = None if version else f"not installed: pip install 'smollm3[{extra}]'"
        extras.append({"package": package, "version": version, "for": purpose, "missing": missing})
    return extras


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """Return the description as lines for people."""
    packages = machine["packages"]
    cpu = machine["cpu"]
    others = ", ".join(
        f"{name} {version or 'missing'}" for name, version in packages.items() if name != "torch"
    )
    memory = f", {machine['memory_bytes'] / 1e9:.0f} GB memory" if machine["memory_bytes"] else ""
    lines = [
        f"smollm3       {machine['smollm3']}",
        f"python        {machine['python']} on {machine['platform']}",
        f"torch         {packages['torch']}",
        f"packages      {others}",
        f"cpu           {cpu['name']}, {cpu['cores']} cores{memory}",
        f"              {' '.join(cpu['instruction_sets']) or 'instruction sets unknown'}",
    ]
    native = machine["native_engine"]
    why = f" ({native['missing']})" if native["instruction_set"] and native["missing"] else ""
    lines.append(f"native engine {native['instruction_set'] or 'none: ' + native['missing']}{why}")
    for device in machine["accelerators"]:
        if "missing" in device:
            lines.append(f"{device['device']:<13} none: {device['missing']}")
        else:
            size = f", {device['memory_bytes'] / 1e9:.0f} GB" if device["memory_bytes"] else ""
            lines.append(f"{device['device']:<13} {device['name']}{size}")
    for extra in machine["extras"]:
        lines.append(f"{extra['package']:<13} {extra['version'] or extra['missing']} (for {extra['for']})")
    return lines
