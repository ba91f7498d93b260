"""What a benchmark must know of the machine: how fast it reads memory, and what this process has taken.

In: numbers of bytes and threads. Out: bytes per second, bytes, seconds; None where a system does not say.
Knows no model.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import smollm3
from smollm3.native.free_memory import available_memory

READ_BYTES = 1536 << 20  # far beyond any cache
READS = 3  # of which the fastest counts: what slows a read down is not the memory


class ReadMeter:
    """A buffer larger than the caches and the threads that read it."""

    def __init__(self, threads: int) -> None:
        """Take READ_BYTES and touch them, in huge pages where the native library gives them."""
        from smollm3.native.library import native_status
        from smollm3.native.matrix import allocate

        self._threads = threads
        self._native = native_status().available
        memory = allocate(READ_BYTES) if self._native else np.empty(READ_BYTES, np.uint8)
        memory.fill(1)
        self._memory = memory

    def measure(self) -> float:
        """Return the bytes read per second by all threads together."""
        return READ_BYTES / min(self._seconds() for _ in range(READS))

    def _seconds(self) -> float:
        begin = time.perf_counter()
        if self._native:
            from smollm3.native.library import load_library

            load_library().sm3_read(self._memory.ctypes.data, READ_BYTES, self._threads)
        else:  # numpy's sum lets other threads run, and is as fast as memory
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(np.add.reduce, np.array_split(self._memory.view(np.int64), self._threads)))
        return time.perf_counter() - begin


def memory_for_meter() -> bool:
    """Whether a ReadMeter fits beside what runs; True where the system does not say."""
    available = available_memory()
    return available is None or available > READ_BYTES * 5 // 4


def peak_rss() -> int | None:
    """Return the most memory that this process held at once, in bytes.

    Linux counts it per program: `ru_maxrss` would begin with the peak of the process that started this one.
    """
    peak = _field(Path("/proc/self/status"), "VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _field(path: Path, name: str) -> int | None:
    """Read `name: N kB` of a file under /proc, in bytes."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def process_age() -> float | None:
    """Return the seconds since this process was started, interpreter and imports included; Linux only."""
    try:
        after_name = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of the whole line
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, ValueError):
        return None


def commit() -> str | None:
    """Return the commit that the package runs from, marked -dirty with changes; None outside a checkout."""
    root = Path(smollm3.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
