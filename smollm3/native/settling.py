"""Moves a network's packed weights from a mapped file into huge pages while it is in use, in its own thread.

A mapped file loads at once; huge pages are read faster, by an eighth and more where memory is virtual. The
thread works while the engine is idle, and from a while on also between two steps. Changes no result. Pages of
files can be dropped and read again, these cannot: where they would be scarce, weights stay in the file.
"""

import contextlib
import threading
import time
import weakref

from smollm3.native.free_memory import available_memory
from smollm3.native.network import Network

PIECE = 16 << 20  # bytes that are moved at a time while the engine is idle
SMALL_PIECE = 4 << 20  # and while it is at work, so that steps wait little
QUIET_SECONDS = 0.05  # without a step, the engine counts as idle
PATIENCE_SECONDS = 5.0  # then weights move between steps too
SHARE = 0.5  # of the memory that is free, at most: the rest is the KV cache's and everybody else's


class Settler:
    """Moves weights until all lie well or the network is gone; holds nothing of it but a weak reference."""

    def __init__(self, network: Network, share: float = SHARE) -> None:
        """Begin, unless what has to move is more than this share of the free memory."""
        self._network = weakref.ref(network)
        self._share = share
        self._thread = threading.Thread(target=self._run, name="smollm3-settle", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the last weights have moved."""
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(MemoryError):  # none left after all: the rest stays in the file
            if self._has_room():
                self._move()

    def _move(self) -> None:
        begin = time.monotonic()
        while (network := self._network()) is not None:
            idle = network.idle_seconds > QUIET_SECONDS
            patient = time.monotonic() - begin < PATIENCE_SECONDS
            if (idle or not patient) and not network.settle(PIECE if idle else SMALL_PIECE):
                return
            del network
            if not idle:
                time.sleep(QUIET_SECONDS)

    def _has_room(self) -> bool:
        network, available = self._network(), available_memory()
        return network is None or available is None or network.settle(0) <= self._share * available
