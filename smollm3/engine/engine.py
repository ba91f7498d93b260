"""The one decode loop: requests of token ids in, token ids out; requests join and leave between steps.

A step is schedule, forward, sample, postprocess. The engine knows nothing about text and no model class;
its consumer pulls, and closing the iterator cancels what is left and frees its slots.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from smollm3.engine.pace import Pace
from smollm3.engine.params import check_number
from smollm3.engine.reading import Pooler, ScoreReader, reading_of
from smollm3.engine.request import Request, check_request
from smollm3.engine.runner import CacheFullError, Runner
from smollm3.engine.sample import Sample, TokenOutput
from smollm3.engine.sampler import Choice, choose, constraint_error
from smollm3.engine.scheduler import Scheduler, Turn
from smollm3.engine.speculation import Speculator
from smollm3.engine.stats import EngineStats
from smollm3.errors import SmolLM3Error

__all__ = ["Engine", "Request", "generate"]

MAX_SAMPLES = 1024  # of one request
MAX_STEP_TOKENS = 512  # ids that one step takes in; a longer prompt takes several steps
MAX_OFFLINE_STEP_TOKENS = 4096  # where nobody waits for the next id, wider steps are fewer


class Engine:
    """Runs requests on a runner; `add` and `abort` may be called between any two steps."""

    def __init__(
        self,
        runner: Runner,
        *,
        max_num_samples: int = MAX_SAMPLES,
        max_step_tokens: int = MAX_STEP_TOKENS,
    ) -> None:
        """Make an engine that runs at most `max_num_samples` samples at once.

        `max_step_tokens`: ids of a step; prompts get half at most beside answers, less if that takes long.
        """
        check_number("max_num_samples", max_num_samples, 1, integer=True)
        check_number("max_step_tokens", max_step_tokens, 1, integer=True)
        self.runner = runner
        self.max_num_samples = max_num_samples
        self._totals = Counter[str]()
        self._forward_cpu_s = self._sampling_cpu_s = 0.0
        self._speculator, self._pace = Speculator(), Pace()
        self._scheduler = Scheduler(
            runner,
            self._speculator,
            self._pace,
            self._totals,
            max_num_samples=max_num_samples,
            max_step_tokens=max_step_tokens,
        )
        self._num_requests = 0

    def stats(self) -> EngineStats:
        """Return what the engine has done and what it holds now."""
        return EngineStats(
            sum(1 + len(sample.followers) for sample in self._scheduler.waiting),
            sum(1 + len(sample.followers) for sample in self._scheduler.running),
            self.runner.cache_tokens_used,
            self.runner.cache_tokens_total,
            self.runner.num_open,
            forward_cpu_seconds_total=self._forward_cpu_s,
            sampling_cpu_seconds_total=self._sampling_cpu_s,
            **dict(self._totals),  # at once: another thread may ask
        )

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.waiting or self._scheduler.running)

    def check(self, request: Request) -> None:
        """Raise unless the request can run on this runner; may be called from any thread."""
        check_request(request, self.runner, min(MAX_SAMPLES, self.max_num_samples))

    def add(self, request: Request) -> int:
        """Queue a request and return its index; raises when it can never run."""
        self.check(request)
        seed = request.params.seed
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        reading = reading_of(request.prompt_ids, request.params)
        number, ids, params = self._num_requests, request.prompt_ids, request.params
        first, *followers = (
            Sample(number, sample_idx, ids, params, seed, request.salt, reading)
            for sample_idx in range(request.num_samples)
        )
        first.followers = followers
        self._scheduler.add(first)
        self._num_requests += 1
        return first.request_idx

    def abort(self, request_idx: int, sample_idx: int | None = None) -> None:
        """Drop a request, or one of its samples; nothing happens if it has ended already."""

        def hit(sample: Sample) -> bool:
            return sample.request_idx == request_idx and sample_idx in (None, sample.sample_idx)

        scheduler = self._scheduler
        for queue in (scheduler.waiting, scheduler.running):
            for place, sample in reversed(list(enumerate(queue))):
                sample.followers = [follower for follower in sample.followers if not hit(follower)]
                if not hit(sample):
                    continue
                if sample.followers:
                    queue[place] = sample.bequeath()
                else:
                    scheduler.drop(sample)

    def close(self) -> None:
        """Drop all requests and free their slots."""
        self._scheduler.waiting.clear()
        while self._scheduler.running:
            self._scheduler.drop(self._scheduler.running[-1])

    def stream(self) -> Iterator[TokenOutput]:
        """Step until no work is left; closing the iterator drops what is left. Raises a sample's error."""
        try:
            while self.has_work:
                for output in self.step():
                    if output.error is not None:
                        raise output.error
                    yield output
        finally:
            self.close()

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Run one forward pass and return the ids that it settles (none while long prompts are taken in).

        Texts to pool have a pass of their own in the same step.
        """
        scheduled = self._scheduler.schedule()
        if not scheduled:
            return []
        turns = [turn for turn in scheduled if not turn.sample.is_pooled]
        pooled = [turn for turn in scheduled if turn.sample.is_pooled]
        decoding = [turn for turn in turns if turn.sample.is_decoding]
        began, cpu = time.perf_counter(), time.thread_time()
        logits = self.runner.forward([turn.row for turn in turns]) if turns else torch.empty(0)
        seconds = time.perf_counter() - began
        hidden = self.runner.hidden([turn.row for turn in pooled]) if pooled else torch.empty(0)
        self._forward_cpu_s += time.thread_time() - cpu
        self._totals["steps_total"] += 1
        for turn in scheduled:
            turn.sample.num_cached += len(turn.row.token_ids) - len(turn.draft)
        outputs = self._pool(pooled, hidden)
        chosen, num_right = self._choose(turns, logits)
        outputs += chosen
        if len(decoding) < len(turns):
            self._pace.note(sum(len(turn.row.token_ids) for turn in turns), seconds)
        self._speculator.settle(
            [(turn.sample.guesser, len(turn.draft), num_right[turn.sample]) for turn in decoding],
            seconds if len(decoding) == len(turns) else None,
        )
        self._totals["drafted_total"] += sum(len(turn.draft) for turn in decoding)
        self._totals["accepted_total"] += num_right.total()
        return outputs

    def _choose(self, turns: Sequence[Turn], logits: Tensor) -> tuple[list[TokenOutput], Counter[Sample]]:
        """Choose the ids that the step settles, along each draft while it is right; count what was right."""
        ready: list[tuple[Sample, int, Sequence[int]]] = []  # with the row of its next logits, and its draft
        outputs: list[TokenOutput] = []
        num_right = Counter[Sample]()
        source = 0
        for turn in turns:
            sample, end = turn.sample, source + turn.row.num_logits
            cpu = time.thread_time()
            num_read, error = _read(sample, logits[source:end])
            self._sampling_cpu_s += time.thread_time() - cpu
            if error is not None or (sample.num_pending == 0 and sample.params.max_new_tokens == 0):
                outputs += self._end(sample, error)
            elif source + num_read < end:
                ready += [(member, source + num_read, turn.draft) for member in self._fork(sample)]
            source = end
        while ready:
            samples, sources, _ = zip(*ready, strict=True)
            right = []
            cpu = time.thread_time()
            choices = choose(_take(logits, sources), samples)
            self._sampling_cpu_s += time.thread_time() - cpu
            for (sample, source, draft), choice in zip(ready, choices, strict=True):
                outputs.append(self._accept(sample, choice))
                if draft and draft[0] == choice.token_id:
                    num_right[sample] += 1
                    if sample.slot is not None:  # it goes on, and the runner has taken this id in already
                        sample.num_cached += 1
                        right.append((sample, source + 1, draft[1:]))
            ready = right
        return outputs, num_right

    def _pool(self, turns: Sequence[Turn], hidden: Tensor) -> list[TokenOutput]:
        """Take in the hidden states of texts to pool; return the vectors of those that end here."""
        outputs: list[TokenOutput] = []
        source = 0
        for turn in turns:
            sample, end = turn.sample, source + len(turn.row.token_ids)
            _, error = _read(sample, hidden[source:end])
            if error is not None or not sample.is_reading:
                outputs += self._end(sample, error)
            source = end
        return outputs

    def _end(self, sample: Sample, error: SmolLM3Error | None) -> list[TokenOutput]:
        """End a sample and its followers without an id: only the prompt was asked about, or it failed."""
        members = [sample, *sample.followers]
        sample.followers = []
        self._scheduler.drop(sample)
        scores = vector = None
        try:
            if error is None and isinstance(sample.reading, Pooler):
                vector = sample.reading.vector()
            elif error is None and isinstance(sample.reading, ScoreReader):
                scores = sample.reading.scores()
        except SmolLM3Error as raised:
            error = raised
        if error is not None:
            self._totals["failed_total"] += len(members)
        return [
            TokenOutput(
                member.request_idx,
                -1,
                member.sample_idx,
                finish_reason=None if error else "length",
                num_reused=sample.num_reused,
                prompt_scores=scores,
                vector=vector,
                error=error,
            )
            for member in members
        ]

    def _fork(self, sample: Sample) -> list[Sample]:
        """Give the request's other samples their slots, now that the prompt is taken in; return all.

        One for whom the cache has no room has its first id chosen like the others and waits then.
        """
        followers, sample.followers = sample.followers, []
        for follower in followers:
            assert sample.slot is not None
            follower.num_reused = sample.num_reused
            try:
                follower.slot = self.runner.fork(sample.slot)
            except CacheFullError:
                self._scheduler.add(follower)
                continue
            follower.num_cached = sample.num_cached
            self._scheduler.join(follower)
        return [sample, *followers]

    def _accept(self, sample: Sample, choice: Choice) -> TokenOutput:
        finish_reason, error, scores = None, choice.error, None
        if isinstance(sample.reading, ScoreReader):
            scores, sample.reading = sample.reading.scores(), None  # they come with the first output
        if error is None:
            try:
                finish_reason = sample.append(choice.token_id)
            except Exception as raised:  # by the constraint, which is foreign code
                error = constraint_error(sample, raised)
        if finish_reason is not None or error is not None:
            self._scheduler.drop(sample)
        self._totals["generated_total" if error is None else "failed_total"] += 1
        return TokenOutput(
            sample.request_idx,
            choice.token_id if error is None else -1,
            sample.sample_idx,
            choice.logprob,
            choice.top_logprobs,
            choice.scores,
            choice.logits,
            finish_reason,
            sample.num_reused,
            scores,
            error=error,
        )


def generate(runner: Runner, requests: Iterable[Request]) -> Iterator[TokenOutput]:
    """Run requests together and yield their ids as they come; all are checked before anything runs.

    Closing the iterator cancels what is left. Each output names its request by its place in `requests`.
    """
    engine = Engine(runner, max_step_tokens=MAX_OFFLINE_STEP_TOKENS)
    for request in requests:
        engine.add(request)
    return engine.stream()


def _read(sample: Sample, values: Tensor) -> tuple[int, SmolLM3Error | None]:
    """Let a sample read what its prompt asks for; return of how many ids, and what failed."""
    try:
        return sample.read(values), None
    except SmolLM3Error as error:
        return 0, error


def _take(logits: Tensor, sources: Sequence[int]) -> Tensor:
    return logits if list(sources) == list(range(len(logits))) else logits[list(sources)]
