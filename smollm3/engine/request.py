"""A prompt and how to go on from it: ids and numbers in, checked against a runner before anything is queued.

Knows no sample and no order of requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral

from smollm3.engine.params import SamplingParams, check_number
from smollm3.engine.runner import Runner
from smollm3.errors import ContextOverflowError, ParameterError, PromptError


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it, `num_samples` times over."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    num_samples: int = 1
    salt: str = ""  # only requests of one salt see each other's pasts


def check_request(request: Request, runner: Runner, max_num_samples: int) -> None:
    """Raise unless the request can run on the runner, with so many samples at most; any thread may ask."""
    params, vocab_size, num_prompt = request.params, runner.vocab_size, len(request.prompt_ids)
    if num_prompt == 0:
        raise PromptError("the prompt is empty: give at least one token id")
    if not _are_ids(request.prompt_ids, vocab_size):
        wrong = next(token_id for token_id in request.prompt_ids if not _is_id(token_id, vocab_size))
        raise PromptError(f"prompt id {wrong!r} is not in the vocabulary: 0 to {vocab_size - 1}")
    for name, ids in (("logit_bias", params.logit_bias), ("bad_words_ids", chain(*params.bad_words_ids))):
        largest = max(ids, default=0)
        if largest >= vocab_size:
            raise ParameterError(f"{name} has the id {largest}: give ids 0 to {vocab_size - 1}")
    check_number("num_samples (num_return_sequences)", request.num_samples, 1, max_num_samples, integer=True)
    context_size = runner.context_size
    if num_prompt + params.max_new_tokens > context_size:
        raise ContextOverflowError(
            f"prompt of {num_prompt} ids + max_new_tokens={params.max_new_tokens} = "
            f"{num_prompt + params.max_new_tokens} is over the context of {context_size}: "
            "shorten one of the two"
        )
    room, needed = runner.cache_tokens_total, num_prompt + max(0, params.max_new_tokens - 1)
    if room is not None and needed > room:
        raise ContextOverflowError(
            f"prompt of {num_prompt} ids + max_new_tokens={params.max_new_tokens} needs {needed} tokens "
            f"of KV cache, which has {room}: shorten one of the two, or give the cache more room"
        )


def _are_ids(values: Sequence[object], vocab_size: int) -> bool:
    if set(map(type, values)) == {int}:  # ten times faster than one by one
        return min(values) >= 0 and max(values) < vocab_size  # type: ignore[type-var, operator]
    return all(_is_id(value, vocab_size) for value in values)


def _is_id(value: object, vocab_size: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and 0 <= int(value) < vocab_size
