"""What is asked of a prompt itself, gathered while it is taken in: scores of its ids, or one pooled vector.

In: logits or hidden states, stretch after stretch, in the order of the ids. Out: PromptScores, or one vector.
How a prompt was cut changes no bit of either. Shapes: T ids, V vocabulary, N hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smollm3.engine import sampling
from smollm3.engine.params import Pooling, SamplingParams
from smollm3.errors import ParameterError


@dataclass(frozen=True, eq=False)
class PromptScores:
    """Log-probabilities of a prompt's ids but the first, each given those before it, on the CPU.

    logprobs: fp32 [T - 1]. top_ids, top_logprobs: the likeliest ids at each place, [T - 1, num_top].
    """

    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


class ScoreReader:
    """Scores a prompt's ids; `num_read` places have been read, of which each scores the id after it."""

    def __init__(self, token_ids: Sequence[int], num_top: int) -> None:
        self._token_ids = list(token_ids)
        self._num_top = num_top
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.num_read = 0

    @property
    def num_left(self) -> int:
        """Places that are still to be read: the last id's is not among them."""
        return len(self._token_ids) - 1 - self.num_read

    def take(self, logits: Tensor) -> None:
        """Take in the logits [R, V] of the next places. Raises ParameterError where they are no numbers."""
        start = self.num_read + 1
        ids = torch.tensor(self._token_ids[start : start + len(logits)], device=logits.device)
        logprobs, top, top_ids = sampling.log_probabilities(logits, ids, self._num_top)
        if bool(logprobs.isnan().any()):
            raise ParameterError("the model returned NaN logits in the prompt: check the weights' dtype")
        self._parts.append((logprobs.cpu(), top_ids.cpu(), top.cpu()))
        self.num_read += len(logits)

    def scores(self) -> PromptScores:
        """Return what has been read."""
        if not self._parts:
            return PromptScores(torch.empty(0), torch.empty(0, 0, dtype=torch.long), torch.empty(0, 0))
        if len(self._parts) > 1:
            logprobs, top_ids, top = (torch.cat(tensors) for tensors in zip(*self._parts, strict=True))
            self._parts = [(logprobs, top_ids, top)]
        return PromptScores(*self._parts[0])


class Pooler:
    """Makes one vector of a prompt's hidden states: their mean, or the last id's."""

    def __init__(self, num_ids: int, pooling: Pooling) -> None:
        self._num_ids = num_ids
        self._pooling = pooling
        self._pooled: Tensor | None = None  # fp64 [1, N]
        self.num_read = 0

    @property
    def num_left(self) -> int:
        """Ids whose hidden states are still to come."""
        return self._num_ids - self.num_read

    def take(self, hidden: Tensor) -> None:
        """Take in the hidden states [R, N] of the next ids."""
        states = hidden.cpu().double()
        if self._pooling == "mean":
            # Summed id by id: a sum of sums would depend on where the text was cut.
            both = states if self._pooled is None else torch.cat((self._pooled, states))
            states = both.cumsum(0)
        self._pooled = states[-1:].clone()
        self.num_read += len(hidden)

    def vector(self) -> Tensor:
        """Return fp64 [N]. Raises ParameterError where it is no vector of numbers."""
        assert self._pooled is not None
        assert self.num_left == 0
        vector = self._pooled[0] / (self._num_ids if self._pooling == "mean" else 1)
        if not bool(vector.isfinite().all()):
            raise ParameterError("the model returned NaN or infinite states: check the weights' dtype")
        return vector


def reading_of(prompt_ids: Sequence[int], params: SamplingParams) -> ScoreReader | Pooler | None:
    """Return what gathers that which `params` ask of the prompt itself; None where they ask nothing."""
    if params.pooling is not None:
        return Pooler(len(prompt_ids), params.pooling)
    if params.prompt_logprobs is not None:
        return ScoreReader(prompt_ids, params.prompt_logprobs)
    return None
