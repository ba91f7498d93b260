"""How much memory may still be taken: the machine's, and a control group's around the process."""

from pathlib import Path

from smollm3.native.free_memory import available_memory

MEMINFO = "MemTotal:       24684096 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"


def system(folder: Path, group: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write a /proc and a tree of control groups; return both."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self" / "cgroup").write_text(f"1:name=systemd:/elsewhere\n0::{group}\n")
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    return proc, cgroups


def test_without_limits_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available_memory(*system(tmp_path, "/", {})) == 8_000_000 * 1024


def test_in_a_container_it_is_what_its_limit_leaves_and_files_count_as_free(tmp_path: Path) -> None:
    files = {
        "memory.max": "4000000000\n",
        "memory.current": "3000000000\n",
        "memory.stat": "anon 900000000\nfile 2000000000\nshmem 100000000\n",
    }
    assert available_memory(*system(tmp_path, "/", files)) == 2_900_000_000


def test_the_tightest_of_the_groups_around_it_counts(tmp_path: Path) -> None:
    files = {
        "team/memory.max": "1000000000",
        "team/memory.current": "400000000",
        "team/job/memory.max": "max",
        "team/job/memory.current": "300000000",
    }
    assert available_memory(*system(tmp_path, "/team/job", files)) == 600_000_000


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {"memory.max": "1000", "memory.current": "2000"}
    assert available_memory(*system(tmp_path, "/", files)) == 0


def test_where_no_file_says_it_is_not_known(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path) is None
