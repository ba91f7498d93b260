"""The engine's Runner over a SmolLM3ForCausalLM: rows of token ids in, the logits after each row out.

Decode rows go through the model together, at their own positions; prompts together where padding them to one
width wastes little, else one by one. Knows neither sampling nor text.
Shapes: R rows, T new ids (padded on the right), V vocabulary, N hidden size.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smollm3.engine.runner import Row
from smollm3.model.slot_cache import SlotCache

if TYPE_CHECKING:
    from smollm3.model.smollm3 import SmolLM3ForCausalLM

MAX_PADDED_TOKENS = 4096  # of prompts that run together


class TorchRunner:
    """Runs a model on its own device in its own dtype, with a KV cache of one row per slot.

    Args:
        num_slots, room: rows and tokens of KV cache to take at once; it grows beyond them when it must.
        fixed_shapes: let every decode step attend over the whole room, so that a compiled or captured step
            can be used again.
    """

    def __init__(
        self, model: "SmolLM3ForCausalLM", *, num_slots: int = 0, room: int = 0, fixed_shapes: bool = False
    ) -> None:
        self.model = model
        self.cache = SlotCache(num_rows=num_slots, room=room)
        self.fixed_shapes = fixed_shapes
        self.context_size = context_size(model)
        self.vocab_size = model.config.vocab_size
        rope = model.config.rope_parameters or {}
        # Dynamic RoPE stretches with the longest row of a pass: beyond this length rows must run alone.
        self._stretches_at = (
            model.config.max_position_embeddings if rope.get("rope_type") == "dynamic" else None
        )

    @torch.inference_mode()
    def open(self, capacity: int) -> int:
        """Return a free slot for a sequence of at most `capacity` ids."""
        return self.cache.open(capacity)

    @torch.inference_mode()
    def fork(self, slot: int) -> int:
        """Return a new slot with a copy of the past of `slot`."""
        return self.cache.fork(slot)

    def close(self, slot: int) -> None:
        """Give the slot back."""
        self.cache.close(slot)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Take in each row's ids; return fp32 logits [len(rows), V] after each row's last id."""
        groups = list(self._groups(rows))
        if len(groups) == 1 and groups[0] == list(range(len(rows))):
            return self._run(rows)
        logits = torch.empty(len(rows), self.vocab_size, device=_device(self.model))
        for group in groups:
            logits[group] = self._run([rows[idx] for idx in group])
        return logits

    def _groups(self, rows: Sequence[Row]) -> Iterator[list[int]]:
        """Yield indices of rows that run in one pass, in the order of their cache rows."""
        order = sorted(range(len(rows)), key=lambda idx: self.cache.slots[rows[idx].slot].row)
        together: list[int] = []  # decode rows
        prompts: list[int] = []
        for idx in order:
            row = rows[idx]
            if self._stretches_at is not None and row.start + len(row.token_ids) > self._stretches_at:
                yield [idx]
            elif len(row.token_ids) == 1:
                together.append(idx)
            elif row.start:  # a further part of a long prompt
                yield [idx]
            elif _wasteful([len(rows[i].token_ids) for i in (*prompts, idx)]):
                if prompts:
                    yield prompts
                prompts = [idx]
            else:
                prompts.append(idx)
        if prompts:
            yield prompts
        if together:
            yield together

    def _run(self, rows: Sequence[Row]) -> Tensor:
        """Run rows of one pass: all with one id, or all at one start."""
        device = _device(self.model)
        lengths = [len(row.token_ids) for row in rows]
        view = self.cache.view([row.slot for row in rows], max(lengths), lengths, fixed=self.fixed_shapes)
        hidden = self.model.model(
            input_ids=_padded([row.token_ids for row in rows], device),
            attention_mask=view.allowed(device) if view.needs_mask else None,
            position_ids=view.positions(device) if view.needs_mask else None,
            past_key_values=view,
            use_cache=True,
            return_dict=True,
        ).last_hidden_state
        return _last_logits(self.model, hidden, lengths)


class RecomputingRunner:
    """The same answers without a KV cache: every step runs the whole sequence again (`use_cache=False`)."""

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

    def close(self, slot: int) -> None:
        """Forget the slot's ids."""
        del self._ids[slot]

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Append each row's ids to its slot's; return fp32 logits [len(rows), V] after each last id."""
        logits = torch.empty(len(rows), self.vocab_size, device=_device(self.model))
        for idx, row in enumerate(rows):
            ids = self._ids[row.slot]
            ids.extend(row.token_ids)
            hidden = self.model.model(
                input_ids=_padded([ids], logits.device), use_cache=False, return_dict=True
            ).last_hidden_state
            logits[idx] = _last_logits(self.model, hidden, [len(ids)])[0]
        return logits


def context_size(model: "SmolLM3ForCausalLM") -> int:
    """Return how many ids a sequence can have; dynamic RoPE is made for `factor` times the trained length."""
    config = model.config
    rope = config.rope_parameters or {}
    stretch = float(rope.get("factor", 1.0)) if rope.get("rope_type") == "dynamic" else 1.0
    return int(config.max_position_embeddings * stretch)


def _wasteful(lengths: Sequence[int]) -> bool:
    """Whether padding these prompts to one width costs more than it saves."""
    padded = max(lengths) * len(lengths)
    return len(lengths) > 1 and (padded > MAX_PADDED_TOKENS or padded > 2 * sum(lengths))


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return ids [R, T]; ids after a row's end are 0 and never seen by real ones (attention is causal)."""
    T = max(len(ids) for ids in rows)
    return torch.tensor([[*ids, *[0] * (T - len(ids))] for ids in rows], device=device)


def _last_logits(model: "SmolLM3ForCausalLM", hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return fp32 logits [R, V] at the last real position of hidden [R, T, N], for those positions only."""
    if hidden.shape[1] == 1 or len(lengths) == 1:
        last = hidden[:, -1]
    else:
        at = torch.tensor(lengths, device=hidden.device) - 1
        last = hidden[torch.arange(len(lengths), device=hidden.device), at]  # [R, N]
    logits: Tensor = model.lm_head(last)
    return logits.float()


def _device(model: "SmolLM3ForCausalLM") -> torch.device:
    return model.model.embed_tokens.weight.device
