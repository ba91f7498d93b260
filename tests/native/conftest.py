"""The native library built with emulated AMX tiles and AVX-VNNI, once for all tests that want it."""

import ctypes
import sys
from pathlib import Path

import pytest

from smollm3.native.library import open_library

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hatch_build import build_library, find_compiler  # noqa: E402


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("amx") / "libsmollm3.so"
    compiler = find_compiler()
    assert compiler is not None
    build_library(compiler, ROOT / "csrc", path, ["-DSM3_EMULATED"])
    return open_library(path)
