"""The library compiled for Arm and run in an emulator: the bits of this machine's instruction sets.

exercise.cpp runs whole steps in every layout and prints a digest of their logits. NEON sums in AVX2's order,
and the portable kernels in their own on every processor, so the digests are equal.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from absent import absent

from hatch_build import FLAGS, build_library, find_compiler
from smollm3.native.library import ISA_NAMES, load_library, native_status

ROOT = Path(__file__).resolve().parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
HINT = "on Debian, apt install g++-aarch64-linux-gnu qemu-user"
LINE = re.compile(r"(kind .*) isa (\d): (\w{16})")


def exercise(compiler: str, library: Path, folder: Path) -> Path:
    """Compile exercise.cpp beside a library."""
    source, program = ROOT / "tests/native/exercise.cpp", folder / "exercise"
    command = [compiler, *FLAGS, str(source), str(library), f"-Wl,-rpath,{library.parent}", "-lpthread"]
    subprocess.run([*command, "-o", str(program)], check=True)
    return program


def digests(*command: str) -> dict[str, dict[str, str]]:
    """Run it: by instruction set, each run's digest."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("\n0 failures\n")
    found: dict[str, dict[str, str]] = {}
    for run, isa, digest in LINE.findall(done.stdout):
        found.setdefault(ISA_NAMES[int(isa)], {})[run] = digest
    return found


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the exercise as Arm code."""
    if not (shutil.which(COMPILER) and shutil.which(EMULATOR)):
        absent(f"no {COMPILER} or no {EMULATOR} on this machine: {HINT}")
    folder = tmp_path_factory.mktemp("arm")
    library = folder / "libsmollm3.so"
    build_library(COMPILER, ROOT / "csrc", library, ["-Werror"], "aarch64")
    return [EMULATOR, "-L", "/usr/aarch64-linux-gnu", str(exercise(COMPILER, library, folder))]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    compiler, library = find_compiler(), Path(load_library()._name)
    assert compiler is not None
    return digests(str(exercise(compiler, library, tmp_path_factory.mktemp("here"))))


def test_arm_gives_the_bits_of_this_machine(on_arm: list[str], here: dict[str, dict[str, str]]) -> None:
    there = digests(*on_arm)
    assert set(there) == {"portable", "neon"}
    assert len(there["neon"]) == 12
    assert there["portable"] == here["portable"]
    if "avx2" in native_status().isas:
        assert there["neon"] == here["avx2"]


def test_arm_without_dot_products_runs_the_portable_kernels(
    on_arm: list[str], here: dict[str, dict[str, str]]
) -> None:
    there = digests(on_arm[0], "-cpu", "cortex-a72", *on_arm[1:])
    assert there == {"portable": here["portable"]}
