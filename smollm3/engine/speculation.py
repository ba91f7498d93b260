"""Decides how many ids of each sample to guess, from what guesses gained before and what wider steps cost.

The engine verifies a guess in the forward pass that it makes anyway, so a guess changes speed and nothing
else. A sample may lose a small share of its time on guesses; once that is spent it decodes plainly until
enough time has passed for another try.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from smollm3.engine.lookup import Lookup

STAKE = 0.75  # steps' time that a sample may lose on guesses before it has gained any
LOSS = 0.01  # and the share of every further step
NUM_MEASURED = 9  # passes of one width, of which the fastest counts: the rest is other processes
REMEMBERED = 128  # passes after which a width that did not come again is not known any more
HOPE = 0.6  # chance of a first guess; a sample that does not guess comes back to it by and by
DEAREST = 0.2  # steps that a draft with a wrong id is booked with at least, however little it seems to cost
PROBE = 4  # ids to guess while it is not known what they cost


class StepCosts:
    """Seconds of a forward pass by its number of ids, as measured; between two measurements a line.

    What was measured long ago is forgotten: a width that came once, in a bad moment, would look dear always.
    """

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._last: dict[int, int] = {}  # the pass in which a width came last
        self._num_passes = 0

    def note(self, num_ids: int, seconds: float) -> None:
        """Take in a pass in which all rows decode."""
        self._recent.setdefault(num_ids, deque(maxlen=NUM_MEASURED)).append(seconds)
        self._num_passes += 1
        self._last[num_ids] = self._num_passes
        for old in [num for num, last in self._last.items() if self._num_passes - last > REMEMBERED]:
            del self._recent[old], self._last[old]

    def of(self, num_ids: int) -> float | None:
        """Return what a pass of so many ids takes; None beyond what was measured."""
        if num_ids in self._recent:
            return self._at(num_ids)
        below = max((num for num in self._recent if num < num_ids), default=None)
        above = min((num for num in self._recent if num > num_ids), default=None)
        if below is None or above is None:
            return None
        share = (num_ids - below) / (above - below)
        return self._at(below) + share * (self._at(above) - self._at(below))

    def _at(self, num_ids: int) -> float:
        return min(self._recent[num_ids])


@dataclass
class Guesser:
    """One sample's index, and how its guesses have fared. Times in steps of plain decoding."""

    lookup: Lookup = field(default_factory=Lookup)
    right: float = HOPE  # of `tried` guesses; older ones count less
    tried: float = 1.0
    credit: float = STAKE

    def judge(self, num_guessed: int, num_right: int) -> None:
        """Take in how many of a draft's ids were right; those after the first wrong one say nothing."""
        wrong = num_right < num_guessed
        self.right = 0.9 * self.right + num_right
        self.tried = 0.9 * self.tried + num_right + wrong


class Speculator:
    """Shares one table of costs among the samples of an engine."""

    def __init__(self) -> None:
        self.costs = StepCosts()

    def draft(
        self, guesser: Guesser, token_ids: Sequence[int], num_rows: int, num_ids: int, limit: int
    ) -> list[int]:
        """Return the ids to guess after `token_ids`, none where they would not pay.

        Args:
            num_rows: sequences that decode in this step. num_ids: ids in it so far, guesses included.
            limit: ids at most.
        """
        if limit < 1 or guesser.credit <= 0:
            return []
        found = guesser.lookup.guess(token_ids, limit)
        return found[: self._best_length(guesser, len(found), num_rows, num_ids)] if found else []

    def _best_length(self, guesser: Guesser, num_found: int, num_rows: int, num_ids: int) -> int:
        plain, before = self.costs.of(num_rows), self.costs.of(num_ids)
        if plain is None or before is None:
            return 0  # nothing to compare with yet
        chance = guesser.right / guesser.tried
        expected, best, best_gain = 0.0, 0, 0.0
        for num in range(1, num_found + 1):
            if num > 1 and chance**num < DEAREST:
                break
            expected += chance**num
            cost = self.costs.of(num_ids + num)
            if cost is None:
                return best or min(PROBE, num_found)
            gain = expected * plain / num_rows - (cost - before)
            if gain > best_gain:
                best, best_gain = num, gain
        return best

    def settle(self, guesses: Sequence[tuple[Guesser | None, int, int]], seconds: float | None) -> None:
        """Book a step: for each row that decodes, how many ids it guessed and how many were right.

        `seconds`: what the pass took, if nothing else was in it.
        """
        num_rows, num_drafted = len(guesses), sum(num_guessed for _, num_guessed, _ in guesses)
        if seconds is not None:
            self.costs.note(num_rows + num_drafted, seconds)
        plain, cost = self.costs.of(num_rows), self.costs.of(num_rows + num_drafted)
        extra = max(0.0, cost / plain - 1) if plain and cost else 0.0  # in plain steps
        for guesser, num_guessed, num_right in guesses:
            if guesser is None:
                continue
            guesser.credit += LOSS / num_rows
            if num_guessed:
                guesser.judge(num_guessed, num_right)
                loss = max(extra * num_guessed / num_drafted, DEAREST * (num_right < num_guessed) / num_rows)
                guesser.credit += num_right / num_rows - loss
            else:
                guesser.right += 0.02 * (HOPE - guesser.right)
                guesser.tried += 0.02 * (1 - guesser.tried)
            guesser.credit = min(guesser.credit, STAKE / num_rows)
