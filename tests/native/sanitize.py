"""Builds the native library with each sanitizer and exercise.cpp, AMX tiles emulated, and runs it."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hatch_build import build_library, find_compiler  # noqa: E402


def main() -> None:
    compiler = find_compiler()
    if compiler is None:
        sys.exit("no C++17 compiler found: install g++ or clang++")
    for sanitizer in ("address,undefined", "thread"):
        flags = [
            f"-fsanitize={sanitizer}",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
            "-g",
            "-O1",
        ]
        flags += ["-DSM3_EMULATED"]
        with tempfile.TemporaryDirectory() as folder:
            library, program = Path(folder) / "libsmollm3.so", Path(folder) / "sanitize"
            build_library(compiler, ROOT / "csrc", library, flags)
            source = str(ROOT / "tests/native/exercise.cpp")
            command = [
                compiler,
                "-std=c++17",
                *flags,
                source,
                str(library),
                f"-Wl,-rpath,{folder}",
                "-lpthread",
            ]
            subprocess.run([*command, "-o", str(program)], check=True)
            print(f"-fsanitize={sanitizer}:", flush=True)
            subprocess.run([str(program)], check=True)


if __name__ == "__main__":
    main()
