"""Reading memory: every word is read once, whatever the size and the number of threads."""

import numpy as np
import pytest

from smollm3.native.library import load_library
from smollm3.native.matrix import allocate

STRETCH = 4 << 20  # bytes of one task in csrc/read.cpp


@pytest.mark.parametrize("size", [8, 256, 264, STRETCH, STRETCH + 256, 3 * STRETCH + 1000])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_word_is_read_once(size: int, threads: int) -> None:
    memory = allocate(size)
    memory[:] = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    expected = int(np.bitwise_xor.reduce(memory.view(np.uint64)))
    assert load_library().sm3_read(memory.ctypes.data, size, threads) == expected


def test_a_changed_word_shows() -> None:
    memory = allocate(2 * STRETCH)
    before = load_library().sm3_read(memory.ctypes.data, memory.nbytes, 2)
    memory[-1] = 1
    after = load_library().sm3_read(memory.ctypes.data, memory.nbytes, 2)
    assert (before, after) == (0, 1 << 56)
