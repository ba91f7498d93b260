"""Keys and values of sequences that have ended, kept within a number of tokens for those that begin alike.

In: ids with their tensors; out: the past that shares most leading ids with a new sequence. Ids are compared,
not hashes. Knows no model and no slots.
Shapes: per layer keys and values [K, T, D]: kv heads, tokens, head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Past:
    """One sequence's keys and values, per layer."""

    token_ids: NDArray[np.int64]
    salt: str
    keys: list[Tensor]
    values: list[Tensor]


class KeptPasts:
    """Forgets the least recently used past when there are more than `max_tokens` tokens."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._pasts: list[Past] = []  # in the order of their last use

    def add(self, past: Past) -> None:
        """Keep a past; those that are the beginning of it are of no more use."""
        self._pasts = [
            kept
            for kept in self._pasts
            if kept.salt != past.salt or _num_common(kept.token_ids, past.token_ids) < len(kept.token_ids)
        ]
        self._pasts.append(past)
        while sum(len(kept.token_ids) for kept in self._pasts) > self.max_tokens:
            del self._pasts[0]

    def find(self, token_ids: Sequence[int], salt: str) -> tuple[Past | None, int]:
        """Return the past of this salt that shares most leading ids, and how many."""
        ids = np.asarray(token_ids, np.int64)
        best, most = None, 0
        for past in self._pasts:
            if past.salt == salt and (num := _num_common(past.token_ids, ids)) > most:
                best, most = past, num
        if best is not None:
            self._pasts.remove(best)
            self._pasts.append(best)
        return best, most


def _num_common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    num = min(len(a), len(b))
    differs = a[:num] != b[:num]
    return int(differs.argmax()) if differs.any() else num
