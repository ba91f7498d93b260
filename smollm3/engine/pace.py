"""How many ids a step may take in while answers wait for it: what fits a length of time, by the last steps.

Ids and seconds of past steps in, a number of ids out. Changes when a prompt is taken in, and no answer.
"""

from collections import deque

STEP_SECONDS = 0.5  # between two ids of an answer beside which a prompt is taken in, where the machine allows
NUM_MEASURED = 5  # steps, of which the fastest counts: the rest is other processes
FIRST_IDS = 64  # of a step while none was measured
LEAST_IDS = 32  # a narrower step says little: it waits for the weights


class Pace:
    """Seconds per id of the last wide steps."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=NUM_MEASURED)

    def note(self, num_ids: int, seconds: float) -> None:
        """Take in what a step with prompts in it took."""
        if num_ids >= LEAST_IDS:
            self._recent.append(seconds / num_ids)

    def num_ids(self, most: int) -> int:
        """Return how many ids, prompts' and answers', a step may have, `most` or fewer."""
        if not self._recent:
            return min(most, FIRST_IDS)
        seconds = min(self._recent) * most
        return most if seconds <= STEP_SECONDS else int(most * STEP_SECONDS / seconds)
