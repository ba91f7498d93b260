"""The library built by compilers that know less than ours."""

import shlex
from pathlib import Path

import pytest

from hatch_build import build_library, find_compiler
from smollm3.native import library as native_library
from smollm3.native.library import native_status, open_library

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif("avx512" not in native_status().isas, reason="what is left out must be usable here")
def test_an_old_compiler_leaves_out_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = find_compiler()
    assert compiler is not None
    old = tmp_path / "old-g++"
    refused = "*\\ -mavxvnni*|*\\ -mavx512*|*\\ -mamx-*"
    old.write_text(
        f'#!/bin/sh\ncase " $*" in {refused}) echo "unrecognized option" >&2; exit 1;; esac\n'
        f'exec {shlex.quote(compiler)} "$@"\n'
    )
    old.chmod(0o755)
    left_out = build_library(str(old), ROOT / "csrc", tmp_path / "lib.so", ["-O0"])
    kernels = [f"kernels_{name}.cpp" for name in ("avxvnni", "avx512", "avx512bf16", "zen4", "amx")]
    assert left_out == [*kernels, "quantize_avx512.cpp"]
    monkeypatch.setattr(native_library, "load_library", lambda: open_library(tmp_path / "lib.so"))
    assert native_status.__wrapped__().isas == ("portable", "avx2")
