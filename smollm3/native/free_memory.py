"""How much memory this process may still take: what the machine has, within the limits of its control groups.

In: nothing but the system's own files. Out: bytes, None where no file says. Knows no model.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the bytes that new work can have; pages of files that can be read again count as free."""
    found = [*_machine(proc), *_groups(proc, cgroups)]
    return max(0, min(found)) if found else None


def _machine(proc: Path) -> Iterator[int]:
    for line in _read(proc / "meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield what is left in this process's group and each one around it (version 2, as containers have)."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        if number != "0":
            continue
        own = PurePosixPath(rest.partition(":")[2].lstrip("/"))
        for path in (own, *own.parents):
            folder = cgroups / path
            most, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
            if most.isdigit() and used.isdigit():
                stat = dict(line.split()[:2] for line in _read(folder / "memory.stat").splitlines())
                yield int(most) - int(used) + int(stat.get("file", 0)) - int(stat.get("shmem", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:  # no Linux, or nothing of the kind here
        return ""
