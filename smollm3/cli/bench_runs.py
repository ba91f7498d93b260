"""What is timed: prompts taken in, and tokens decoded by one sequence or several, with random ids.

In: any Runner. Out: tokens per second. Knows neither model nor machine; sampling is no part of it.
"""

import random
import time
from collections.abc import Iterator, Sequence

from smollm3.engine.runner import Row, Runner


class Workload:
    """Random ids through a runner; the same ones for the same seed."""

    def __init__(self, runner: Runner, num_new: int, seed: int = 0) -> None:
        self.runner = runner
        self.num_new = num_new
        self._random = random.Random(seed)  # numpy's would be memory that no model needs

    def fill(self, slot: int, start: int, end: int) -> float:
        """Let `slot`, which holds `start` ids, take in more up to `end`; return ids per second."""
        ids = self._ids(end - start)
        begin = time.perf_counter()
        self.runner.forward([Row(slot, ids, start)])
        return (end - start) / (time.perf_counter() - begin)

    def prefill(self, length: int) -> float:
        """Take a prompt of `length` ids into an empty cache; return ids per second."""
        slot = self.runner.open(length)
        rate = self.fill(slot, 0, length)
        self.runner.close(slot)
        return rate

    def decode(self, slots: Sequence[int], start: int) -> float:
        """Decode `num_new` ids after the `start` ids of each slot; return ids per second, all together.

        Works on forks, so that the slots can be decoded from again.
        """
        forks = [self.runner.fork(slot) for slot in slots]
        steps = [self._ids(len(slots)) for _ in range(self.num_new)]
        begin = time.perf_counter()
        for done, ids in enumerate(steps):
            rows = [Row(slot, [token_id], start + done) for slot, token_id in zip(forks, ids, strict=True)]
            self.runner.forward(rows)
        seconds = time.perf_counter() - begin
        for slot in forks:
            self.runner.close(slot)
        return len(slots) * self.num_new / seconds

    def _ids(self, count: int) -> list[int]:
        return self._random.choices(range(self.runner.vocab_size), k=count)


def decode_at(work: Workload, contexts: Sequence[int], repeat: int) -> Iterator[tuple[int, list[float]]]:
    """Yield (context, rates of one sequence) for ascending contexts; one cache grows from one to the next."""
    slot = work.runner.open(max(contexts) + work.num_new)
    start = 0
    for context in contexts:
        work.fill(slot, start, context)
        start = context
        yield context, [work.decode([slot], context) for _ in range(repeat)]
    work.runner.close(slot)


def decode_together(
    work: Workload, batches: Sequence[int], context: int, repeat: int
) -> Iterator[tuple[int, list[float]]]:
    """Yield (number of sequences, rates of all together); each sequence has ids and a cache of its own."""
    slots = [work.runner.open(context + work.num_new) for _ in range(max(batches))]
    for slot in slots:
        work.fill(slot, 0, context)
    for batch in batches:
        yield batch, [work.decode(slots[:batch], context) for _ in range(repeat)]
    for slot in slots:
        work.runner.close(slot)
