"""A progress bar on stderr for work that takes longer than a second on a terminal; silent elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
PATIENCE = 1.0  # seconds before a bar appears


def progress(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield the items; show how far they are once it takes longer than a second on a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    begin = time.monotonic()
    bar = None
    try:
        for done, item in enumerate(items, start=1):
            yield item
            if bar is None and time.monotonic() - begin > PATIENCE:
                bar = _start_bar(label, total)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)
    finally:
        if bar is not None:
            bar.stop()


def _start_bar(label: str, total: int) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(label, total=total)
    bar.start()
    return bar
