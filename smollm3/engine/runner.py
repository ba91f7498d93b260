"""What the engine asks of a model: slots that hold a sequence's past, and one forward call for mixed rows.

Any implementation will do: torch modules, the native CPU engine, a table in a test.
Shapes: T ids, V vocabulary, N hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """New ids of one sequence: `token_ids` follow the first `start` ids that its slot has taken in.

    What the slot holds beyond `start` is dropped (a rejected draft). `num_logits`: after how many of the last
    ids logits are wanted; 0 for all but the last part of a prompt.
    """

    slot: int
    token_ids: Sequence[int]
    start: int
    num_logits: int = 1


class CacheFullError(MemoryError):
    """The KV cache has no room; the engine asks `fits` first, so that only a fork can meet it."""


class Runner(Protocol):
    """A model with room for several sequences."""

    @property
    def context_size(self) -> int:
        """Ids that one sequence can hold, prompt and answer together."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def num_open(self) -> int:
        """Slots that are open."""

    @property
    def cache_tokens_used(self) -> int:
        """Tokens of KV cache that sequences hold, in whole blocks; what waits for reuse is not counted."""

    @property
    def cache_tokens_total(self) -> int | None:
        """Tokens that the KV cache has room for; None: it has no bound of its own."""

    def open(self, capacity: int) -> int:
        """Return a free slot for a sequence of at most `capacity` ids."""

    def fork(self, slot: int) -> int:
        """Return a new slot that holds the same past as `slot`; the two then go their own ways.

        Raises CacheFullError when the cache has no room for it.
        """

    def reuse(self, slot: int, token_ids: Sequence[int], salt: str = "") -> int:
        """Let an empty slot take over the longest past that the cache has for the beginning of `token_ids`.

        Ids are compared, not hashes, and only pasts of the same salt are seen. Returns how many ids the slot
        now holds: fewer than all, since the last one's logits are still to come.
        """

    def close(self, slot: int, token_ids: Sequence[int] = (), salt: str = "") -> None:
        """Give the slot back. What it holds of `token_ids` may stay for `reuse`."""

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether the KV cache has room for these rows; pasts that only wait for reuse count as room."""

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Take in each row's ids (prefill and decode rows may mix; one row per slot at most).

        Returns fp32 logits [sum of num_logits, V], rows in order, which the caller may overwrite.
        """

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """Take in each row's ids as `forward` does; no logits are wanted of them.

        Returns fp32 hidden states after the final norm [sum of the rows' ids, N], rows in order.
        """
