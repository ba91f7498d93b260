"""How the process's own Python threads have used the processor: read from /proc (Linux), else not known."""

import threading
from pathlib import Path

from smollm3.engine.stats import EngineStats


def around_model_seconds(stats: EngineStats) -> float | None:
    """Return the processor time of everything but the model: HTTP, text, scheduling.

    Taken off is what the engine's thread spends in the runner and in choosing ids; the threads of the native
    engine and of torch are not Python's and not counted to begin with. None where /proc does not tell.
    """
    seconds = 0.0
    for thread in threading.enumerate():
        used = thread_seconds(thread.native_id)
        if used is None:
            return None
        seconds += used
    return max(0.0, seconds - stats.forward_cpu_seconds_total - stats.sampling_cpu_seconds_total)


def thread_seconds(native_id: int | None, tasks: Path = Path("/proc/self/task")) -> float | None:
    """Return a thread's processor time; 0 for one that has just ended, None without /proc."""
    try:
        return int((tasks / str(native_id) / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0 if tasks.exists() else None
