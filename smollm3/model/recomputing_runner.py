"""The engine's Runner without a KV cache (`use_cache=False`): every step runs the whole sequence again.

What caches are checked against. Knows neither sampling nor text.
Shapes: T ids of a sequence, V vocabulary, N hidden size.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smollm3.engine.runner import Row
from smollm3.model.torch_runner import context_size, device_of, last_logits, padded

if TYPE_CHECKING:
    from smollm3.model.smollm3 import SmolLM3ForCausalLM


class RecomputingRunner:
    """The same answers as TorchRunner, to rounding, at the cost of every earlier id in every step."""

    def __init__(self, model: "SmolLM3ForCausalLM") -> None:
        self.model = model
        self.context_size = context_size(model)
        self.vocab_size = model.config.vocab_size
        self._ids: dict[int, list[int]] = {}
        self._last_slot = -1

    def open(self, capacity: int) -> int:
        """Return a free slot; `capacity` needs no room here."""
        self._last_slot += 1
        self._ids[self._last_slot] = []
        return self._last_slot

    def fork(self, slot: int) -> int:
        """Return a new slot with the ids of `slot`."""
        copy = self.open(0)
        self._ids[copy] = list(self._ids[slot])
        return copy

    def reuse(self, slot: int, token_ids: Sequence[int], salt: str = "") -> int:
        """Keep nothing of closed slots."""
        return 0

    def close(self, slot: int, token_ids: Sequence[int] = (), salt: str = "") -> None:
        """Forget the slot's ids."""
        del self._ids[slot]

    @property
    def num_open(self) -> int:
        """Slots that are open."""
        return len(self._ids)

    @property
    def cache_tokens_used(self) -> int:
        """None are ever held."""
        return 0

    @property
    def cache_tokens_total(self) -> int | None:
        """None: there is no cache to fill."""
        return None

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether there is room: always."""
        return True

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Append each row's ids to its slot's; return fp32 logits [sum of num_logits, V]."""
        logits = [torch.empty(0, self.vocab_size, device=device_of(self.model))]
        for row in rows:
            ids = self._append(row)
            if row.num_logits:
                logits.append(last_logits(self.model, self._states(ids), [len(ids)], [row.num_logits]))
        return torch.cat(logits)

    @torch.inference_mode()
    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """Append each row's ids to its slot's; return their fp32 hidden states after the final norm."""
        return torch.cat([self._states(self._append(row))[0, row.start :] for row in rows]).float()

    def _append(self, row: Row) -> list[int]:
        ids = self._ids[row.slot]
        ids[row.start :] = row.token_ids
        return ids

    def _states(self, ids: Sequence[int]) -> Tensor:
        """Return hidden states [1, T, N] of a whole sequence."""
        hidden: Tensor = self.model.model(
            input_ids=padded([ids], device_of(self.model)), use_cache=False, return_dict=True
        ).last_hidden_state
        return hidden
