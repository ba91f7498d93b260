"""Bounds the freed memory that the C library keeps for threads: they share glibc's arenas.

In: nothing. Out: nothing; without glibc there is nothing to do. Knows no model and no server.
"""

import ctypes
import sys
from typing import Any

NUM_ARENAS = 2  # the first thread's and one for all others
_M_ARENA_MAX = -8  # of malloc.h


def share_arenas() -> None:
    """Let threads that start from now on allocate from two arenas, not from up to eight per core.

    Each arena keeps the most that its threads ever had at once; among many threads that come by turns (texts,
    templates, grammars) this adds up for hours. Raises nothing.
    """
    if sys.platform != "linux":
        return
    library: Any = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_ARENA_MAX, NUM_ARENAS)
