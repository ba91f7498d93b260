"""The keyboard while an answer is drawn: Ctrl-C stops it, but not in mid-drawing; no key draws over it."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from smollm3.cli.terminal import is_terminal


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


@contextmanager
def silent_keyboard() -> Iterator[None]:
    """Keep what is typed from showing in the block; it is not lost, the next prompt gets it."""
    try:
        import termios
    except ImportError:  # no Unix: keys are not echoed by the terminal there
        yield
        return
    if not is_terminal(sys.stdin):
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = list(before)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
