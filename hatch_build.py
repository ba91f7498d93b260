"""Builds the native library while the package is built; without a compiler the package installs without it.

One library per platform through a plain C interface, so the wheel's tag is py3-none-<platform>.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # tests compile the library without building a package
    BuildHookInterface = object

FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wno-psabi",
]
AVX512 = ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
# Each instruction set has a unit of its own: none of its code can end up in another's.
X86_UNITS = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avxvnni.cpp": ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"],
    "kernels_avx512.cpp": AVX512,
    "kernels_avx512bf16.cpp": [*AVX512, "-mavx512bf16"],
    "kernels_zen4.cpp": [*AVX512, "-mavx512bf16"],
    "kernels_amx.cpp": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
    "quantize_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "quantize_avx512.cpp": [*AVX512, "-mprefer-vector-width=512"],
}
ARM_UNITS = {"kernels_neon.cpp": ["-march=armv8.2-a+dotprod"]}
# By processor: what names it to the sources, and its units.
PROCESSORS = {"x86_64": (["-DSM3_X86"], X86_UNITS), "arm64": (["-DSM3_ARM64"], ARM_UNITS)}
NAMES = {"amd64": "x86_64", "aarch64": "arm64"}  # other names of them
UNITS = [
    "blocks.cpp",
    "border.cpp",
    "kernels_portable.cpp",
    "dispatch.cpp",
    "engine.cpp",
    "layer.cpp",
    "pack.cpp",
    "quantize.cpp",
    "quantize_portable.cpp",
    "read.cpp",
    "settle.cpp",
    "threads.cpp",
]


def find_compiler() -> str | None:
    """Return the C++ compiler: $CXX where it is set, else the first of the usual names."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def library_name() -> str:
    """Return the library's file name on this platform."""
    return "_smollm3.dylib" if sys.platform == "darwin" else "_smollm3.so"


def knows(compiler: str, flags: list[str]) -> bool:
    """Whether a compiler takes some flags."""
    command = [compiler, *flags, "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def build_library(
    compiler: str, source: Path, target: Path, extra: list[str], machine: str = platform.machine()
) -> list[str]:
    """Compile csrc/ into the shared library `target`; CalledProcessError carries what the compiler said.

    Returns the units of instruction sets that this compiler is too old for: the library does without them.
    """
    processor = NAMES.get(machine.lower(), machine.lower())
    define, own_units = PROCESSORS.get(processor, ([], {}))
    left_out = [name for name, flags in own_units.items() if not knows(compiler, flags)]
    units = {name: list[str]() for name in UNITS} | own_units
    units = {name: flags for name, flags in units.items() if name not in left_out}
    common = [*FLAGS, *define, *extra]

    def run(command: list[str]) -> None:
        subprocess.run(command, check=True, capture_output=True, text=True)

    with tempfile.TemporaryDirectory() as folder:
        objects = {name: f"{folder}/{name}.o" for name in units}
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            commands = [
                [compiler, *common, *flags, "-c", str(source / name), "-o", objects[name]]
                for name, flags in units.items()
            ]
            list(pool.map(run, commands))
        built = f"{folder}/{target.name}"
        run([compiler, "-shared", *extra, *objects.values(), "-o", built, "-lpthread"])
        shutil.move(built, target)
    return left_out


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatch's hook: builds the library, then tags the wheel by platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        target = root / "smollm3" / "native" / library_name()
        compiler = find_compiler()
        if compiler is None or sys.platform == "win32":
            self.app.display_warning("no C++17 compiler found: installing without the native engine")
            return
        try:
            extra = os.environ.get("SMOLLM3_CXXFLAGS", "").split()
            left_out = build_library(compiler, root / "csrc", target, extra)
        except subprocess.CalledProcessError as error:
            target.unlink(missing_ok=True)
            self.app.display_warning(
                f"installing without the native engine: {compiler} failed\n{error.stderr}"
            )
            return
        if left_out:
            self.app.display_warning(f"{compiler} is too old for {', '.join(left_out)}: built without")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(f"smollm3/native/{target.name}")
