"""What one request asks of sampling: ids and numbers only, checked on construction.

A field at its default is off. Nothing here knows a model, a vocabulary's size or a string.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

from smollm3.engine.constraint import Constraint
from smollm3.errors import ParameterError

Pooling = Literal["mean", "last"]


def check_number(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    integer: bool = False,
    above: bool = False,
) -> None:
    """Raise ParameterError unless `value` is a finite number in [low, high], or (low, high] if `above`."""
    kind = "an integer" if integer else "a finite number"
    if isinstance(value, bool) or not isinstance(value, Integral if integer else Real):
        raise ParameterError(f"{name}={value!r}: give {kind}")
    number = float(value)
    if not math.isfinite(number) or number > high or number < low or (above and number == low):
        bound = f"{'above' if above else 'at least'} {low:g}" if math.isfinite(low) else ""
        limit = f"at most {high:g}" if math.isfinite(high) else ""
        wanted = " and ".join(part for part in (bound, limit) if part)
        raise ParameterError(f"{name}={value!r}: give {kind}{' ' + wanted if wanted else ''}")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ParameterError(f"{name}={value!r}: give True or False")


def check_ids(name: str, ids: object) -> None:
    """Raise ParameterError unless `ids` is a non-empty sequence of token ids."""
    if isinstance(ids, str) or not isinstance(ids, Sequence) or not ids:
        raise ParameterError(f"{name}={ids!r}: give a non-empty list of token ids")
    for token_id in ids:
        check_number(name, token_id, 0, integer=True)


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the tokens of one request.

    max_new_tokens: tokens to generate at most; with the prompt they must fit the runner's context. 0 where
        nothing is asked but what the prompt gives.
    min_new_tokens: no eos id can be chosen before so many tokens.
    temperature: 0 with do_sample is greedy. With do_sample off, temperature, top_k, top_p, min_p have no say.
    repetition_penalty: divides (or multiplies) logits of ids in prompt and answer; 1 is off, and beyond 1e-4
        and 1e4 it is these.
    presence_penalty, frequency_penalty: subtracted from logits of generated ids, once and per occurrence.
    logit_bias: id -> number added to its logit. bad_words_ids: id sequences that are never completed.
    seed: None draws one from torch's global generator, so torch.manual_seed reproduces it.
    logprobs: None is off; n gives the chosen id's log-probability and those of the n likeliest ids, under
        the model's own distribution (before penalties, bias, temperature and truncation).
    prompt_logprobs: the same for the ids of the prompt but the first, handed out with the first output; such
        a prompt is taken in anew, whatever the cache holds of it.
    pooling: hand out one vector of the prompt's hidden states, their "mean" or the "last", and no ids.
    output_scores, output_logits: hand out each step's processed and raw logits, fp32 [V].
    constraint: which ids may come next, as the answer grows; each sample takes a fork of it.
    prompt_lookup: guess next ids from what followed the same ids earlier and verify several in one forward
        pass. It changes no id, only how fast they come. prompt_lookup_num_tokens: ids to guess at most.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words_ids: Sequence[Sequence[int]] = ()
    eos_token_ids: frozenset[int] = frozenset()
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    pooling: Pooling | None = None
    output_scores: bool = False
    output_logits: bool = False
    constraint: Constraint | None = field(default=None, compare=False)
    prompt_lookup: bool = False
    prompt_lookup_num_tokens: int = 16

    def __post_init__(self) -> None:
        reads = self.prompt_logprobs is not None or self.pooling is not None
        check_number("max_new_tokens", self.max_new_tokens, 0 if reads else 1, integer=True)
        check_number("min_new_tokens", self.min_new_tokens, 0, integer=True)
        if self.min_new_tokens > self.max_new_tokens:
            raise ParameterError(
                f"min_new_tokens={self.min_new_tokens} is above "
                f"max_new_tokens={self.max_new_tokens}: lower it"
            )
        for name in ("do_sample", "output_scores", "output_logits", "prompt_lookup"):
            check_flag(name, getattr(self, name))
        check_number("prompt_lookup_num_tokens", self.prompt_lookup_num_tokens, 1, integer=True)
        check_number("temperature", self.temperature, 0)
        check_number("top_k", self.top_k, 0, integer=True)
        check_number("top_p", self.top_p, 0, 1)
        check_number("min_p", self.min_p, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 0, above=True)
        check_number("presence_penalty", self.presence_penalty, -math.inf)
        check_number("frequency_penalty", self.frequency_penalty, -math.inf)
        if self.seed is not None:
            check_number("seed", self.seed, -math.inf, integer=True)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, integer=True)
        if self.pooling is not None:
            self._check_pooling()
        self._check_id_fields()

    def _check_pooling(self) -> None:
        if self.pooling not in ("mean", "last"):
            raise ParameterError(f"pooling={self.pooling!r}: give mean or last")
        if self.max_new_tokens or self.prompt_logprobs is not None:
            raise ParameterError(
                "pooling goes with max_new_tokens=0 and without prompt_logprobs: ask for them by themselves"
            )

    def _check_id_fields(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise ParameterError(f"logit_bias={self.logit_bias!r}: give a mapping from token id to a number")
        for token_id, bias in self.logit_bias.items():
            check_number("logit_bias's token id", token_id, 0, integer=True)
            check_number(f"logit_bias[{token_id}]", bias, -math.inf)
        if not isinstance(self.bad_words_ids, Sequence):
            raise ParameterError(f"bad_words_ids={self.bad_words_ids!r}: give a list of lists of token ids")
        for word in self.bad_words_ids:
            check_ids("bad_words_ids", word)
        for token_id in self.eos_token_ids:
            check_number("eos_token_id", token_id, 0, integer=True)

    @property
    def samples(self) -> bool:
        """Whether chance has a say: otherwise the likeliest id is taken."""
        return self.do_sample and self.temperature > 0
