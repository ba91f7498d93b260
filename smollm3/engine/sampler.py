"""One step's logits and the samples they belong to, in; the chosen ids with their scores, out.

Order, as in transformers: logit bias, repetition penalty, (presence and frequency penalty,) bad words, eos
before min_new_tokens, the constraint's mask, then for sampled rows temperature, top-k, top-p, min-p.
A row from which no id can be chosen fails alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smollm3.engine import sampling
from smollm3.engine.sample import Sample
from smollm3.errors import ConstraintError, ParameterError, SmolLM3Error

Cell = tuple[int, int, float]  # row, id, value


@dataclass(frozen=True, slots=True)
class Choice:
    """A row's chosen id; `scores` and `logits` are fp32 [V]."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    scores: Tensor | None = None
    logits: Tensor | None = None
    error: SmolLM3Error | None = None  # then the other fields mean nothing


def choose(logits: Tensor, samples: Sequence[Sample]) -> list[Choice]:
    """Choose each row's next id from logits [R, V], which it overwrites."""
    raw = logits
    if any(s.params.logprobs is not None or s.params.output_logits for s in samples):
        raw = logits.clone()
    errors: dict[int, SmolLM3Error] = {}
    scores = process_(logits, samples, errors)
    ids = _pick(scores, samples, errors)
    logprobs = _logprobs(raw, ids, samples)
    return [
        Choice(-1, error=errors[row])
        if row in errors
        else Choice(
            token_id,
            logprob=logprobs[row][0] if row in logprobs else None,
            top_logprobs=logprobs[row][1] if row in logprobs else None,
            scores=scores[row].clone() if sample.params.output_scores else None,
            logits=raw[row].clone() if sample.params.output_logits else None,
        )
        for row, (token_id, sample) in enumerate(zip(ids, samples, strict=True))
    ]


def process_(logits: Tensor, samples: Sequence[Sample], errors: dict[int, SmolLM3Error]) -> Tensor:
    """Return the processed logits [R, V] that the next ids are chosen from; overwrites `logits`.

    Rows whose constraint failed are added to `errors`.
    """
    _edit_(sampling.add_, logits, _cells(samples, lambda s: s.params.logit_bias.items()))
    _edit_(sampling.penalise_repetition_, logits, _cells(samples, _repetition))
    _edit_(sampling.add_, logits, _cells(samples, _count_penalties))
    cells = [
        (row, token_id, 0.0)
        for row, sample in enumerate(samples)
        if sample.params.bad_words_ids or sample.params.min_new_tokens
        for token_id in sample.forbidden()
        if token_id < logits.shape[-1]  # an eos id of the config may lie outside of the vocabulary
    ]
    if cells:
        rows, ids, _ = _tensors(cells, logits)
        sampling.forbid_(logits, rows, ids)
    for row, sample in enumerate(samples):
        if sample.constraint is not None:
            try:
                if (mask := sample.constraint.mask()) is not None:
                    sampling.forbid_outside_(logits[row], mask)
            except Exception as error:  # a constraint is foreign code: whatever it raises is this row's own
                errors[row] = constraint_error(sample, error)
    drawn = [row for row, sample in enumerate(samples) if sample.params.samples]
    if not drawn:
        return logits
    params = [samples[row].params for row in drawn]
    warped = logits if len(drawn) == len(samples) else logits[drawn]
    sampling.warp_(
        warped,
        [p.temperature for p in params],
        [p.top_k for p in params],
        [p.top_p for p in params],
        [p.min_p for p in params],
    )
    if warped is not logits:
        logits[drawn] = warped
    return logits


def _repetition(sample: Sample) -> Iterable[tuple[int, float]]:
    penalty = sample.params.repetition_penalty
    return ((token_id, penalty) for token_id in sample.seen) if penalty != 1.0 else ()


def _count_penalties(sample: Sample) -> Iterable[tuple[int, float]]:
    presence, frequency = sample.params.presence_penalty, sample.params.frequency_penalty
    if not (presence or frequency):
        return ()
    return ((token_id, -presence - frequency * count) for token_id, count in sample.counts.items())


def _cells(samples: Sequence[Sample], of: Callable[[Sample], Iterable[tuple[int, float]]]) -> list[Cell]:
    return [(row, token_id, value) for row, sample in enumerate(samples) for token_id, value in of(sample)]


def _tensors(cells: Sequence[Cell], logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, ids, values = zip(*cells, strict=True)
    device = logits.device
    at = torch.tensor([rows, ids], device=device)
    return at[0], at[1], torch.tensor(values, dtype=logits.dtype, device=device)


def _edit_(
    function: Callable[[Tensor, Tensor, Tensor, Tensor], None], logits: Tensor, cells: Sequence[Cell]
) -> None:
    if cells:
        function(logits, *_tensors(cells, logits))


def constraint_error(sample: Sample, error: Exception) -> SmolLM3Error:
    """Return what a failed constraint means to whoever asked for the sample."""
    if isinstance(error, SmolLM3Error):
        return ConstraintError(str(error))
    return ParameterError(
        f"request {sample.request_idx}: the constraint failed at token {sample.num_generated} "
        f"({type(error).__name__}: {error}); relax it or leave it out"
    )


def _pick(scores: Tensor, samples: Sequence[Sample], errors: dict[int, SmolLM3Error]) -> list[int]:
    """Return each row's id: the likeliest, or one drawn with the sample's own random number."""
    ids, tops = sampling.likeliest(scores)
    for row, (top, sample) in enumerate(zip(tops, samples, strict=True)):
        if row not in errors and not math.isfinite(top):
            why = (
                "the model returned NaN or infinite logits" if top != -math.inf else "no id is left to choose"
            )
            kind = ConstraintError if top == -math.inf and sample.params.constraint else ParameterError
            errors[row] = kind(
                f"request {sample.request_idx}: {why} at token {sample.num_generated}; "
                "check the weights' dtype, bad_words_ids, logit_bias and the constraint"
            )
    drawn = [row for row, sample in enumerate(samples) if sample.params.samples and row not in errors]
    if drawn:
        subset = scores if len(drawn) == len(samples) else scores[drawn]
        picked = sampling.draw(subset, [samples[row].uniform() for row in drawn]).tolist()
        for row, token_id in zip(drawn, picked, strict=True):
            ids[row] = token_id
    return ids


def _logprobs(
    raw: Tensor, ids: Sequence[int], samples: Sequence[Sample]
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """Return, for each row that asks, the chosen id's log-probability and the likeliest ids with theirs."""
    wanted = {row: sample.params.logprobs for row, sample in enumerate(samples)}
    num_top = {row: num for row, num in wanted.items() if num is not None}
    if not num_top:
        return {}
    rows = list(num_top)
    chosen_ids = torch.tensor([ids[row] for row in rows], device=raw.device)
    chosen, top, top_ids = sampling.log_probabilities(raw[rows], chosen_ids, max(num_top.values()))
    columns = zip(rows, chosen.tolist(), top_ids.tolist(), top.tolist(), strict=True)
    return {
        row: (logprob, tuple(zip(row_ids, row_logprobs, strict=True))[: num_top[row]])
        for row, logprob, row_ids, row_logprobs in columns
    }
