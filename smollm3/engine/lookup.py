"""Guesses how a sequence goes on: by what followed when its last ids stood there before.

An index of pairs of ids, brought up to date as the sequence grows: each place links to the one before with
the same pair, so nothing is ever searched again. Knows no model; a guess may be wrong.
"""

from collections.abc import Sequence

MAX_TRIED = 8  # earlier places that are compared, newest first
MAX_MATCH = 8  # ids by which they are compared; two at least


class Lookup:
    """The index of one sequence."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], int] = {}  # pair -> where its second id stands, most recently
        self._before: list[int] = []  # per place: the one before with the same pair, or -1

    def guess(self, token_ids: Sequence[int], num: int) -> list[int]:
        """Return up to `num` ids that may follow; `token_ids` is the sequence so far, which only grows."""
        self._take_in(token_ids)
        end = len(token_ids) - 1
        place = self._before[end] if end > 0 else -1
        best, length = -1, 1
        for _ in range(MAX_TRIED):
            if place < 0:
                break
            matched = 2
            while (
                matched < MAX_MATCH
                and matched <= place
                and token_ids[place - matched] == token_ids[end - matched]
            ):
                matched += 1
            if matched > length:
                best, length = place, matched
            if length == MAX_MATCH:
                break
            place = self._before[place]
        if best < 0:
            return []
        # What follows may run into the guess itself: a short period goes on.
        period = end - best
        return [token_ids[best + 1 + offset % period] for offset in range(num)]

    def _take_in(self, token_ids: Sequence[int]) -> None:
        for place in range(len(self._before), len(token_ids)):
            if place == 0:
                self._before.append(-1)
                continue
            pair = token_ids[place - 1], token_ids[place]
            self._before.append(self._last.get(pair, -1))
            self._last[pair] = place
