"""Ctrl-C where it does no harm: it stops an answer, but never in the middle of drawing it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Raises KeyboardInterrupt on Ctrl-C while active, put off to the end of a shielded stretch.

    Outside the main thread, where Python takes no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._shielded = False
        self._pending = False

    @contextmanager
    def active(self) -> Iterator["Interrupts"]:
        """Handle Ctrl-C in the block; the handler before comes back after it."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def shielded(self, *, discard: bool = False) -> Iterator[None]:
        """Put a Ctrl-C off until the block has ended, or forget it with `discard`."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        pending, self._pending = self._pending, False
        if pending and not discard:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._shielded:
            self._pending = True
        else:
            raise KeyboardInterrupt
