"""What the engine asks of a model: slots that hold a sequence's past, and one forward call for mixed rows.

Any implementation will do: torch modules, the native CPU engine, a table in a test.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """New ids of one sequence: `token_ids` follow the `start` ids that its slot has already taken in."""

    slot: int
    token_ids: Sequence[int]
    start: int


class Runner(Protocol):
    """A model with room for several sequences."""

    @property
    def context_size(self) -> int:
        """Ids that one sequence can hold, prompt and answer together."""

    @property
    def vocab_size(self) -> int: ...

    def open(self, capacity: int) -> int:
        """Return a free slot for a sequence of at most `capacity` ids."""

    def fork(self, slot: int) -> int:
        """Return a new slot that holds the same past as `slot`; the two then go their own ways."""

    def close(self, slot: int) -> None:
        """Give the slot back."""

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Take in each row's ids (prefill and decode rows may mix; one row per slot at most).

        Returns fp32 logits [len(rows), V] after each row's last id, which the caller may overwrite.
        """
