"""Who takes part in the next step, and with how many ids: samples that wait or run, in; rows, out.

Every sample that decodes has its row in every step. What a step has left goes to prompts, most of it to the
shortest and some to the oldest: a short one never waits for a long one, a long one always goes on, and of
equals the first has its first id while the others wait, not all of them at the end. Samples are admitted in
the order of their arrival while the KV cache has room; when it runs out the newest one steps back, and its
past is computed again later.
"""

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from smollm3.engine.pace import Pace
from smollm3.engine.runner import Row, Runner
from smollm3.engine.sample import Sample
from smollm3.engine.speculation import Speculator

HEADROOM = 64  # ids by which the running samples may grow before an admission could cost one its place
OLDEST_PART = 4  # one in so many ids of a step goes to the oldest prompts, the others to the shortest
SHARED = 64  # ids that are worth waiting for when another prompt is about to compute them
SCORED_LOGITS = 2**24  # logits of one step (64 MiB) by which prompts are scored


@dataclass(frozen=True, slots=True)
class Turn:
    """A sample's part of a step; the last `len(draft)` ids of its row are guesses."""

    sample: Sample
    row: Row
    draft: Sequence[int] = ()


class Scheduler:
    """Keeps who waits and who runs, both in the order of arrival; gives out slots and takes them back."""

    def __init__(
        self,
        runner: Runner,
        speculator: Speculator,
        pace: Pace,
        totals: Counter[str],
        *,
        max_num_samples: int,
        max_step_tokens: int,
    ) -> None:
        self._runner = runner
        self._speculator = speculator
        self._pace = pace
        self._totals = totals
        self._max_num_samples = max_num_samples
        self._max_step_tokens = max_step_tokens
        self.waiting: list[Sample] = []
        self.running: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Let a sample without a slot wait for its turn."""
        insort(self.waiting, sample, key=_arrival)

    def join(self, sample: Sample) -> None:
        """Let a sample run that has been given its slot."""
        insort(self.running, sample, key=_arrival)

    def drop(self, sample: Sample) -> None:
        """Forget a sample that has ended, wherever it stands."""
        if sample.slot is None:
            self.waiting.remove(sample)
        else:
            self._leave(sample)

    def schedule(self) -> list[Turn]:
        """Return the next step's turns; none when no work is left."""
        turns, stepped_back = self._decode()
        num_ids = sum(len(turn.row.token_ids) for turn in turns)
        budget = self._max_step_tokens
        if turns:  # they wait for the whole step, so the prompts' part is kept small
            most = min(budget // 2, budget - num_ids, self._pace.num_ids(budget) - num_ids)
            budget = max(1, budget // 8, most)
        if not stepped_back:
            self._admit(turns)
        if not turns:
            budget = self._before_a_first_id(budget)
        while True:
            rows = self._prompt_turns(turns, budget)
            if rows or turns or len(self.running) < 2:
                return turns + rows
            self._step_back()  # only prompts are left, and not one of them has room to go on

    def _before_a_first_id(self, budget: int) -> int:
        """Return how many ids a step of prompts alone has: few where a short one has its first id sooner so.

        A quick step must hold all of it, and the others must need more than this step anyway.
        """
        pending = [sample.num_pending for sample in self.running if not sample.is_pooled]
        quick = self._pace.num_ids(budget)
        if sum(pending) > budget and min(pending) <= quick - quick // OLDEST_PART:
            return quick
        return budget

    def _decode(self) -> tuple[list[Turn], bool]:
        """Return a turn for each sample that decodes, and whether another had to make room for them."""
        stepped_back = False
        turns = self._drafts()
        while not self._runner.fits([turn.row for turn in turns]):
            if any(turn.draft for turn in turns):
                turns = [Turn(turn.sample, turn.sample.row(1)) for turn in turns]
                continue
            self._step_back()
            stepped_back = True
            turns = [turn for turn in turns if turn.sample.slot is not None]
        return turns, stepped_back

    def _drafts(self) -> list[Turn]:
        decoding = [sample for sample in self.running if sample.is_decoding]
        num_ids = len(decoding)
        turns = []
        for sample in decoding:
            row, draft = sample.row(1), []
            if sample.guesser is not None:
                draft = self._speculator.draft(
                    sample.guesser, sample.token_ids, len(decoding), num_ids, sample.num_to_guess
                )
                num_ids += len(draft)
            if draft:
                row = Row(row.slot, [*row.token_ids, *draft], row.start, 1 + len(draft))
            turns.append(Turn(sample, row, draft))
        return turns

    def _prompt_turns(self, turns: Sequence[Turn], budget: int) -> list[Turn]:
        """Return turns for prompts; the newest go without where the cache has no room."""
        filling = [sample for sample in self.running if not sample.is_decoding]
        shares = self._shares(filling, budget)
        rows = [turn.row for turn in turns]
        chosen: list[Turn] = []
        for sample, num in zip(filling, shares, strict=True):
            if num == 0:
                continue
            row = sample.row(num)
            if not self._runner.fits([*rows, row]):
                break
            rows.append(row)
            chosen.append(Turn(sample, row))
        return chosen

    def _shares(self, samples: Sequence[Sample], budget: int) -> list[int]:
        """Share out a step's ids. Texts to pool, however many, share as one prompt among the others."""
        wanted = [sample.num_pending for sample in samples]
        pooled = [idx for idx, sample in enumerate(samples) if sample.is_pooled]
        others = [idx for idx in range(len(samples)) if idx not in set(pooled)]
        scored = [idx for idx in others if samples[idx].is_reading]
        most = max(1, SCORED_LOGITS // self._runner.vocab_size)
        for idx, num in zip(scored, prompt_shares([wanted[idx] for idx in scored], most), strict=True):
            wanted[idx] = num
        units = sorted([[idx] for idx in others] + ([pooled] if pooled else []))  # by who came first
        shares = [0] * len(samples)
        of_units = prompt_shares([sum(wanted[idx] for idx in unit) for unit in units], budget)
        for unit, of_unit in zip(units, of_units, strict=True):
            for idx, num in zip(unit, prompt_shares([wanted[idx] for idx in unit], of_unit), strict=True):
                shares[idx] = num
        return shares

    def _admit(self, turns: Sequence[Turn]) -> None:
        """Give slots to waiting samples in their order, as far as the cache has room for all of their ids."""
        num_samples = sum(1 + len(sample.followers) for sample in self.running)
        grown = [_grown(turn.row) for turn in turns]
        grown += [_whole(sample) for sample in self.running if not sample.is_decoding]
        for sample in list(self.waiting):
            num_samples += 1 + len(sample.followers)
            if num_samples > self._max_num_samples:
                return
            slot = self._runner.open(sample.num_prompt + sample.params.max_new_tokens)
            num_reused = 0
            if not sample.is_pooled:
                num_reused = self._runner.reuse(slot, sample.reusable_ids, sample.salt)
            sample.slot, sample.num_cached = slot, num_reused
            whole = _whole(sample)
            awaited = self._is_awaited(sample)
            if awaited or not (self._runner.fits([*grown, whole]) or not self.running):
                self._runner.close(slot)
                sample.slot, sample.num_cached = None, 0
                if awaited:
                    num_samples -= 1 + len(sample.followers)
                    continue
                return
            grown.append(whole)
            self.waiting.remove(sample)
            self.join(sample)
            self._totals["prompt_ids_total"] += len(sample.token_ids)
            self._totals["prompt_ids_reused_total"] += num_reused
            if sample.num_generated == 0:
                sample.num_reused = num_reused

    def _is_awaited(self, sample: Sample) -> bool:
        """Whether a running prompt is about to compute what this one could then take over."""
        num = sample.num_cached + SHARED
        return num < len(sample.reusable_ids) and any(
            other.num_cached < num <= len(other.token_ids)
            and not other.is_pooled
            and other.salt == sample.salt
            and other.token_ids[:num] == sample.token_ids[:num]
            for other in self.running
        )

    def _step_back(self) -> None:
        """Take the slot of the newest sample; it waits again, ahead of all that came after it."""
        sample = self.running[-1]
        self._leave(sample)
        self.add(sample)
        self._totals["preemptions_total"] += 1

    def _leave(self, sample: Sample) -> None:
        """Free the slot of a running sample; what it holds may be reused."""
        assert sample.slot is not None
        self.running.remove(sample)
        num_kept = 0 if sample.is_pooled else sample.num_cached
        self._runner.close(sample.slot, sample.token_ids[:num_kept], sample.salt)
        sample.slot, sample.num_cached = None, 0


def prompt_shares(wanted: Sequence[int], budget: int) -> list[int]:
    """Share out a step among prompts that want so many ids each, the oldest first.

    Three quarters go to the shortest first and a quarter to the oldest, who get what is left over too.
    """
    shares = [0] * len(wanted)
    by_length = sorted(range(len(wanted)), key=lambda idx: wanted[idx])
    for order, kept in ((by_length, budget // OLDEST_PART), (range(len(wanted)), 0)):
        for idx in order:
            more = min(wanted[idx] - shares[idx], budget - kept)
            shares[idx] += more
            budget -= more
    return shares


def _arrival(sample: Sample) -> tuple[int, int]:
    return sample.request_idx, sample.sample_idx


def _whole(sample: Sample) -> Row:
    """A row of all that a sample has not taken in yet; only its length counts."""
    assert sample.slot is not None
    return Row(sample.slot, range(sample.num_pending), sample.num_cached)


def _grown(row: Row) -> Row:
    return Row(row.slot, range(len(row.token_ids) + HEADROOM), row.start)
