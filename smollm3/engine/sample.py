"""One sequence on its way: the prompt's ids and the ids chosen so far, with what penalties count."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from torch import Tensor

from smollm3.engine.params import SamplingParams
from smollm3.engine.reading import Pooler, PromptScores, ScoreReader
from smollm3.engine.runner import Row
from smollm3.engine.speculation import Guesser
from smollm3.errors import SmolLM3Error

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenOutput:
    """One chosen id; `scores` and `logits` are fp32 [V], `finish_reason` comes with a sample's last id.

    num_reused: prompt ids whose past came from the cache. prompt_scores: with a sample's first output, where
    they were asked for. vector: fp64 [N], pooled. error: the sample failed here and has no further output.
    Where no id was chosen (nothing but the prompt was asked about, or it failed), token_id is -1.
    """

    request_idx: int
    token_id: int
    sample_idx: int = 0
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    scores: Tensor | None = field(default=None, repr=False, compare=False)
    logits: Tensor | None = field(default=None, repr=False, compare=False)
    finish_reason: FinishReason | None = None
    num_reused: int = 0
    prompt_scores: PromptScores | None = field(default=None, repr=False, compare=False)
    vector: Tensor | None = field(default=None, repr=False, compare=False)
    error: SmolLM3Error | None = field(default=None, compare=False)


class Sample:
    """One of a request's samples: its ids, its random numbers, its slot in the runner.

    Its random numbers come from (seed, sample_idx) alone, one per chosen id, so that they do not depend on
    what else is in the batch. `followers` are the request's other samples, which take a copy of this one's
    slot once the prompt has been taken in; all of them have one `reading`.
    """

    def __init__(
        self,
        request_idx: int,
        sample_idx: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        seed: int,
        salt: str = "",
        reading: ScoreReader | Pooler | None = None,
    ) -> None:
        self.request_idx = request_idx
        self.sample_idx = sample_idx
        self.params = params
        self.salt = salt
        self.token_ids = list(prompt_ids)
        self.num_prompt = len(self.token_ids)
        self.num_cached = 0
        self.slot: int | None = None
        self.followers: list[Sample] = []
        self.counts: dict[int, int] = {}  # generated ids
        self.seen: dict[int, None] = {}  # all ids, for the repetition penalty
        if params.repetition_penalty != 1.0:
            self.seen = dict.fromkeys(self.token_ids)
        self.num_reused = 0
        self.reading = reading
        self.guesser = Guesser() if params.prompt_lookup else None
        self.constraint = None if params.constraint is None else params.constraint.fork()
        self._random = Random(f"{seed}/{sample_idx}")

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Ids that the runner has not taken in yet."""
        return len(self.token_ids) - self.num_cached

    @property
    def is_decoding(self) -> bool:
        """Whether its next step takes in one id that it chose; else a prompt, or a past that it lost."""
        return self.num_pending == 1 and self.num_generated > 0

    @property
    def num_to_guess(self) -> int:
        """Ids at most that a draft may have: the step's own choice is one more."""
        return min(self.params.prompt_lookup_num_tokens, self.params.max_new_tokens - self.num_generated - 1)

    @property
    def is_pooled(self) -> bool:
        """Whether it is a text to pool: it generates nothing and leaves nothing behind."""
        return isinstance(self.reading, Pooler)

    @property
    def is_reading(self) -> bool:
        """Whether the forward passes to come must give something for the ids of the prompt."""
        return self.reading is not None and self.reading.num_left > 0

    @property
    def reusable_ids(self) -> Sequence[int]:
        """The beginning of its ids whose past, all but the last one's, may come from the cache."""
        if self.is_pooled:
            return ()
        return self.token_ids[: self.reading.num_read + 1] if self.reading else self.token_ids

    def row(self, num_ids: int) -> Row:
        assert self.slot is not None
        end = self.num_cached + num_ids
        num_logits = int(num_ids == self.num_pending)
        if self.is_pooled:
            num_logits = 0
        elif self.reading is not None and self.is_reading:
            num_logits = max(0, end - max(self.num_cached, self.reading.num_read))
        return Row(self.slot, self.token_ids[self.num_cached : end], self.num_cached, num_logits)

    def read(self, values: Tensor) -> int:
        """Read the logits, or states, of the row just run for what the prompt asks; return of how many ids.

        Raises ParameterError where they are no numbers.
        """
        if self.reading is None:
            return 0
        if self.is_pooled:  # ids that were read before the sample lost its place are passed over
            values = values[len(values) - max(0, self.num_cached - self.reading.num_read) :]
        num = min(len(values), self.reading.num_left)
        if num:
            self.reading.take(values[:num])
        return num

    def bequeath(self) -> "Sample":
        """Return the first follower, which takes over the slot and the other followers."""
        heir, *heir.followers = self.followers
        heir.slot, heir.num_cached, heir.num_reused = self.slot, self.num_cached, self.num_reused
        return heir

    def uniform(self) -> float:
        """Return the next random number in [0, 1)."""
        return self._random.random()

    def append(self, token_id: int) -> FinishReason | None:
        """Take in a chosen id and say whether it is the last."""
        if self.constraint is not None:
            self.constraint.accept(token_id)
        self.token_ids.append(token_id)
        self.counts[token_id] = self.counts.get(token_id, 0) + 1
        if self.params.repetition_penalty != 1.0:
            self.seen[token_id] = None
        if token_id in self.params.eos_token_ids or (self.constraint is not None and self.constraint.ended):
            return "stop"
        return "length" if self.num_generated >= self.params.max_new_tokens else None

    def forbidden(self) -> set[int]:
        """Return the ids that must not come next: eos while too short, the last ids of bad words."""
        params = self.params
        ids: set[int] = set()
        if self.num_generated < params.min_new_tokens:
            ids |= params.eos_token_ids
        for word in params.bad_words_ids:
            num = len(word) - 1
            if num == 0:
                ids |= set(word) - params.eos_token_ids  # as in transformers, a lone eos is no bad word
            elif num < len(self.token_ids) and self.token_ids[-num:] == list(word[:-1]):
                ids.add(word[-1])
        return ids
