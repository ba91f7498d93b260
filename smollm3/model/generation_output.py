"""What `generate` returns: the engine's outputs of a batch, gathered into padded tensors.

In: TokenOutputs in any order. Out: sequences [B*n, T] and, where asked for, scores, logits, logprobs.
Shapes: B prompts, n samples of each, W width of the padded prompts, T = W + the longest answer, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smollm3.engine.sample import TokenOutput
from smollm3.model.outputs import ModelOutput

TopLogprobs = tuple[tuple[int, float], ...]


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """sequences: [B*n, T], the given input ids, then the answers, padded on the right.

    scores, logits: one fp32 [B*n, V] per step; a row that has ended is certain of the pad id (0 there, -inf
        elsewhere).
    logprobs: per row, the log-probability of each new id under the model's own distribution (raw logits).
    top_logprobs: per row and new id, pairs of id and log-probability, the likeliest first.
    finish_reasons: per row, "stop" (an eos id or a stop string) or "length".
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    logprobs: tuple[tuple[float, ...], ...] | None = None
    top_logprobs: tuple[tuple[TopLogprobs, ...], ...] | None = None
    finish_reasons: tuple[str, ...] | None = None


class Gathered:
    """Takes in outputs as they come."""

    def __init__(self, input_ids: Tensor, num_samples: int, pad_id: int) -> None:
        self.input_ids = input_ids
        self.num_samples = num_samples
        self.pad_id = pad_id
        self.rows: list[list[TokenOutput]] = [[] for _ in range(input_ids.shape[0] * num_samples)]

    def add(self, output: TokenOutput) -> None:
        """Take in one output."""
        self.rows[output.request_idx * self.num_samples + output.sample_idx].append(output)

    def sequences(self) -> Tensor:
        """Return [B*n, T] on the device and in the dtype of the input ids."""
        longest = max(map(len, self.rows))
        answers = [
            [output.token_id for output in row] + [self.pad_id] * (longest - len(row)) for row in self.rows
        ]
        new = torch.tensor(answers, dtype=self.input_ids.dtype, device=self.input_ids.device)
        return torch.cat((self.input_ids.repeat_interleave(self.num_samples, 0), new), dim=1)

    def output(self) -> GenerateOutput:
        """Return everything that was gathered."""
        logprobs = tuple(tuple(o.logprob for o in row if o.logprob is not None) for row in self.rows)
        tops = tuple(tuple(o.top_logprobs for o in row if o.top_logprobs is not None) for row in self.rows)
        return GenerateOutput(
            sequences=self.sequences(),
            scores=self._steps([[output.scores for output in row] for row in self.rows]),
            logits=self._steps([[output.logits for output in row] for row in self.rows]),
            logprobs=logprobs if any(logprobs) else None,
            top_logprobs=tops if any(any(row) for row in tops) else None,
            finish_reasons=tuple(row[-1].finish_reason or "length" for row in self.rows),
        )

    def _steps(self, rows: Sequence[Sequence[Tensor | None]]) -> tuple[Tensor, ...] | None:
        """Turn per-row lists of [V] into per-step [B*n, V]."""
        first = rows[0][0]
        if first is None:
            return None
        ended = torch.full_like(first, -math.inf)
        if self.pad_id < len(ended):
            ended[self.pad_id] = 0
        steps = []
        for step in range(max(map(len, rows))):
            here = [row[step] if step < len(row) else ended for row in rows]
            steps.append(torch.stack([scores for scores in here if scores is not None]))
        return tuple(steps)
