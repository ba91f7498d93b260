"""The one decode loop: requests of token ids in, token ids out; requests join and leave between steps.

A step is schedule, forward, sample, postprocess. The engine knows nothing about text and no model class;
its consumer pulls, and closing the iterator cancels what is left and frees its slots.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral

import torch
from torch import Tensor

from smollm3.engine.params import SamplingParams, check_number
from smollm3.engine.runner import Row, Runner
from smollm3.engine.sample import Sample, TokenOutput
from smollm3.engine.sampler import Choice, choose, constraint_error
from smollm3.engine.stats import EngineStats
from smollm3.errors import ContextOverflowError, ParameterError, PromptError

MAX_SAMPLES = 1024  # of one request
MAX_PREFILL_TOKENS = 4096  # prompt ids that one step takes in; a longer prompt takes several steps


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it, `num_samples` times over."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    num_samples: int = 1
    salt: str = ""  # only requests of one salt see each other's pasts


class Engine:
    """Runs requests on a runner; `add` and `abort` may be called between any two steps."""

    def __init__(
        self,
        runner: Runner,
        *,
        max_num_samples: int = MAX_SAMPLES,
        max_prefill_tokens: int = MAX_PREFILL_TOKENS,
    ) -> None:
        check_number("max_num_samples", max_num_samples, 1, integer=True)
        check_number("max_prefill_tokens", max_prefill_tokens, 1, integer=True)
        self.runner = runner
        self.max_num_samples = max_num_samples
        self.max_prefill_tokens = max_prefill_tokens
        self._waiting: deque[Sample] = deque()  # first samples of requests that have no slot yet
        self._running: list[Sample] = []
        self._num_requests = 0
        self._totals = Counter[str]()

    def stats(self) -> EngineStats:
        """Return what the engine has done and what it holds now."""
        return EngineStats(
            sum(1 + len(sample.followers) for sample in self._waiting),
            sum(1 + len(sample.followers) for sample in self._running),
            self.runner.cache_tokens_used,
            self.runner.cache_tokens_total,
            **self._totals,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, request: Request) -> int:
        """Queue a request and return its index; raises when it can never run."""
        self.check(request)
        seed = request.params.seed
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        first, *followers = (
            Sample(self._num_requests, sample_idx, request.prompt_ids, request.params, seed)
            for sample_idx in range(request.num_samples)
        )
        first.followers = followers
        self._waiting.append(first)
        self._num_requests += 1
        return first.request_idx

    def abort(self, request_idx: int, sample_idx: int | None = None) -> None:
        """Drop a request, or one of its samples; nothing happens if it has ended already."""

        def hit(sample: Sample) -> bool:
            return sample.request_idx == request_idx and sample_idx in (None, sample.sample_idx)

        for queue in (self._waiting, self._running):
            for place, sample in reversed(list(enumerate(queue))):
                sample.followers = [follower for follower in sample.followers if not hit(follower)]
                if not hit(sample):
                    continue
                if sample.followers:
                    queue[place] = sample.bequeath()
                else:
                    del queue[place]
                    self._free(sample)

    def close(self) -> None:
        """Drop all requests and free their slots."""
        self._waiting.clear()
        while self._running:
            self._free(self._running.pop())

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
        """Run one forward pass and return the ids that it settles (none while long prompts are taken in)."""
        scheduled = self._schedule()
        if not scheduled:
            return []
        logits = self.runner.forward([row for _, row in scheduled])
        self._totals["steps_total"] += 1
        ready: list[Sample] = []
        sources: list[int] = []  # the row of logits that each ready sample chooses from
        source = 0
        for sample, row in scheduled:
            sample.num_cached += len(row.token_ids)
            if row.num_logits:
                for member in (sample, *self._fork(sample)):
                    ready.append(member)
                    sources.append(source)
                source += row.num_logits
        if not ready:
            return []
        return self._postprocess(ready, choose(_take(logits, sources), ready))

    def _schedule(self) -> list[tuple[Sample, Row]]:
        """Return the step's rows: all that decode, and prompts in their order up to the budget."""
        scheduled: list[tuple[Sample, Row]] = []
        budget = self.max_prefill_tokens
        for sample in self._running:
            num = sample.num_pending if sample.num_generated else min(sample.num_pending, budget)
            if sample.num_generated == 0:
                budget -= num
            if num:
                scheduled.append((sample, sample.row(num)))
        num_samples = sum(1 + len(sample.followers) for sample in self._running)
        while self._waiting and budget:
            sample = self._waiting[0]
            num_samples += 1 + len(sample.followers)
            fits = sample.num_pending <= budget or budget == self.max_prefill_tokens
            if num_samples > self.max_num_samples or not fits:
                break
            sample.slot = self.runner.open(sample.num_prompt + sample.params.max_new_tokens)
            self._running.append(self._waiting.popleft())
            num = min(sample.num_pending, budget)
            budget -= num
            scheduled.append((sample, sample.row(num)))
        return scheduled

    def _fork(self, sample: Sample) -> list[Sample]:
        """Give the request's other samples their slots, now that the prompt is taken in; return them."""
        followers, sample.followers = sample.followers, []
        for follower in followers:
            assert sample.slot is not None
            follower.slot = self.runner.fork(sample.slot)
            follower.num_cached = sample.num_cached
            self._running.append(follower)
        return followers

    def _postprocess(self, ready: Sequence[Sample], choices: Sequence[Choice]) -> list[TokenOutput]:
        outputs = []
        for sample, choice in zip(ready, choices, strict=True):
            finish_reason, error = None, choice.error
            if error is None:
                try:
                    finish_reason = sample.append(choice.token_id)
                except Exception as raised:  # by the constraint, which is foreign code
                    error = constraint_error(sample, raised)
            if finish_reason is not None or error is not None:
                self._running.remove(sample)
                self._free(sample)
            self._totals["generated_total" if error is None else "failed_total"] += 1
            outputs.append(
                TokenOutput(
                    sample.request_idx,
                    choice.token_id if error is None else -1,
                    sample.sample_idx,
                    choice.logprob,
                    choice.top_logprobs,
                    choice.scores,
                    choice.logits,
                    finish_reason,
                    sample.num_reused,
                    error,
                )
            )
        return outputs

    def _free(self, sample: Sample) -> None:
        if sample.slot is not None:
            self.runner.close(sample.slot)
            sample.slot = None

    def check(self, request: Request) -> None:
        """Raise unless the request can run on this runner; may be called from any thread."""
        params, vocab_size, num_prompt = request.params, self.runner.vocab_size, len(request.prompt_ids)
        if num_prompt == 0:
            raise PromptError("the prompt is empty: give at least one token id")
        for token_id in request.prompt_ids:
            if not _is_id(token_id, vocab_size):
                raise PromptError(f"prompt id {token_id!r} is not in the vocabulary: 0 to {vocab_size - 1}")
        for name, ids in (("logit_bias", params.logit_bias), ("bad_words_ids", chain(*params.bad_words_ids))):
            largest = max(ids, default=0)
            if largest >= vocab_size:
                raise ParameterError(f"{name} has the id {largest}: give ids 0 to {vocab_size - 1}")
        limit = min(MAX_SAMPLES, self.max_num_samples)
        check_number("num_samples (num_return_sequences)", request.num_samples, 1, limit, integer=True)
        context_size = self.runner.context_size
        if num_prompt + params.max_new_tokens > context_size:
            raise ContextOverflowError(
                f"prompt of {num_prompt} ids + max_new_tokens={params.max_new_tokens} = "
                f"{num_prompt + params.max_new_tokens} is over the context of {context_size}: "
                "shorten one of the two"
            )


def generate(runner: Runner, requests: Iterable[Request]) -> Iterator[TokenOutput]:
    """Run requests together and yield their ids as they come; all are checked before anything runs.

    Closing the iterator cancels what is left. Each output names its request by its place in `requests`.
    """
    engine = Engine(runner)
    for request in requests:
        engine.add(request)
    return engine.stream()


def _is_id(value: object, vocab_size: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and 0 <= int(value) < vocab_size


def _take(logits: Tensor, sources: list[int]) -> Tensor:
    return logits if sources == list(range(len(logits))) else logits[sources]
