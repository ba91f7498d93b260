"""The engine's Runner over a SmolLM3ForCausalLM: rows of token ids in, the logits after each row out.

Decode rows go through the model together, at their own positions; prompts together where padding them to one
width wastes little, else one by one. Knows neither sampling nor text.
Shapes: R rows, T new ids (padded on the right), V vocabulary, N hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smollm3.engine.runner import Row
from smollm3.errors import ParameterError
from smollm3.model.captured_steps import CapturedSteps, can_capture
from smollm3.model.kept_pasts import KeptPasts, Past
from smollm3.model.slot_cache import SlotCache, SlotView

if TYPE_CHECKING:
    from smollm3.model.smollm3 import SmolLM3ForCausalLM

MAX_PADDED_TOKENS = 4096  # of prompts that run together


class TorchRunner:
    """Runs a model on its own device in its own dtype, with a KV cache of one row per slot.

    On CUDA, decode steps of all rows together are recorded and replayed.

    Args:
        num_slots, room: rows and tokens of KV cache to take at once; it grows beyond them when it must.
        max_kept_tokens: tokens of closed slots whose past is kept, in copies, for sequences that begin alike.
    """

    def __init__(
        self,
        model: "SmolLM3ForCausalLM",
        *,
        num_slots: int = 0,
        room: int = 0,
        max_kept_tokens: int = 0,
    ) -> None:
        self.model = model
        self.kept = KeptPasts(max_kept_tokens)
        self.cache = SlotCache(num_rows=num_slots, room=room)
        self.captured = CapturedSteps(model, self.cache) if can_capture(model) else None
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

    @torch.inference_mode()
    def reuse(self, slot: int, token_ids: Sequence[int], salt: str = "") -> int:
        """Copy the longest past that is kept for the beginning of `token_ids`; return its length."""
        past, num = self.kept.find(token_ids[:-1], salt)
        if past is not None:
            keys, values = ([tensor[:, :num] for tensor in part] for part in (past.keys, past.values))
            self.cache.copy_in(slot, keys, values)
        return num

    @torch.inference_mode()
    def close(self, slot: int, token_ids: Sequence[int] = (), salt: str = "") -> None:
        """Give the slot back; its past is kept if there is room for it."""
        num = min(len(token_ids), self.cache.slots[slot].length)
        if 0 < num <= self.kept.max_tokens and self._stretches_at is None:
            self.kept.add(Past(np.array(token_ids[:num]), salt, *self.cache.copy_out(slot, num)))
        self.cache.close(slot)

    @torch.inference_mode()
    def export_past(self, slot: int, num_ids: int) -> dict[str, NDArray[Any]]:
        """Return "keys" and "values" of a slot's first ids [layers, K, num_ids, D]; half floats as int16."""
        parts = zip(("keys", "values"), self.cache.copy_out(slot, num_ids), strict=True)
        return {name: _as_numbers(torch.stack(tensors).cpu()).numpy() for name, tensors in parts}

    @torch.inference_mode()
    def import_past(
        self, token_ids: Sequence[int], arrays: Mapping[str, NDArray[Any]], salt: str = ""
    ) -> None:
        """Let `reuse` find what `export_past` gave for exactly these ids, with the same model and dtype.

        Raises ParameterError where the arrays have another shape or dtype, or the runner keeps no such past.
        """
        if len(token_ids) > self.kept.max_tokens or self._stretches_at is not None:
            raise ParameterError(
                f"this runner keeps {self.kept.max_tokens} tokens of pasts, this one has {len(token_ids)}: "
                "make it with a larger max_kept_tokens (dynamic RoPE keeps none)"
            )
        config, weight = self.model.config, self.model.model.embed_tokens.weight
        shape = (config.num_hidden_layers, config.num_key_value_heads, len(token_ids), config.head_dim)
        like = _as_numbers(torch.empty(0, dtype=self.model.dtype)).numpy().dtype
        for name in ("keys", "values"):
            array = arrays.get(name)
            if array is None or array.shape != shape or array.dtype != like:
                found = "missing" if array is None else f"{array.dtype} {array.shape}"
                raise ParameterError(
                    f"{name} of the saved past are {found}, this model's are {like} {shape}: save it anew"
                )
        keys, values = (
            list(torch.from_numpy(arrays[name].copy()).view(self.model.dtype).to(weight.device))
            for name in ("keys", "values")
        )
        self.kept.add(Past(np.array(token_ids), salt, keys, values))

    @property
    def num_open(self) -> int:
        """Slots that are open."""
        return len(self.cache.slots)

    @property
    def cache_tokens_used(self) -> int:
        """Tokens that open slots hold."""
        return sum(slot.length for slot in self.cache.slots.values())

    @property
    def cache_tokens_total(self) -> int | None:
        """None: the cache grows as it must."""
        return None

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether there is room: always, for the cache grows."""
        return True

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Take in each row's ids; return fp32 logits [sum of num_logits, V] after the rows' last ids."""
        groups = list(self._groups(rows))
        if len(groups) == 1 and groups[0] == list(range(len(rows))):
            return self._run(rows)
        ends = list(accumulate(row.num_logits for row in rows))
        logits = torch.empty(ends[-1], self.vocab_size, device=device_of(self.model))
        for group in groups:
            places = [place for idx in group for place in range(ends[idx] - rows[idx].num_logits, ends[idx])]
            out = self._run([rows[idx] for idx in group])
            if places:
                logits[places] = out
        return logits

    @torch.inference_mode()
    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """Take in each row's ids; return fp32 hidden states after the final norm [all ids, N]."""
        states: dict[int, Tensor] = {}
        for group in self._groups(rows):
            together = [rows[idx] for idx in group]
            hidden = self._states(together, self._view(together))  # [R, T, N]
            for idx, of_row in zip(group, hidden, strict=True):
                states[idx] = of_row[: len(rows[idx].token_ids)]
        return torch.cat([states[idx] for idx in range(len(rows))]).float()

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
        """Run rows of one pass; return their logits."""
        view = self._view(rows)
        lengths, num_logits = [len(row.token_ids) for row in rows], [row.num_logits for row in rows]
        if self.captured is not None and view.is_whole and max(lengths) == 1 and all(num_logits):
            logits = self.captured.run([row.token_ids[0] for row in rows], [row.start for row in rows])
            if logits is not None:
                return logits
        return last_logits(self.model, self._states(rows, view), lengths, num_logits)

    def _view(self, rows: Sequence[Row]) -> SlotView:
        """Return the cache as rows of one pass see it, with room for their new ids."""
        for row in rows:
            self.cache.cut(row.slot, row.start)
        lengths = [len(row.token_ids) for row in rows]
        return self.cache.view([row.slot for row in rows], max(lengths), lengths)

    def _states(self, rows: Sequence[Row], view: SlotView) -> Tensor:
        """Run rows of one pass, all with one id, or all at one start; return hidden states [R, T, N]."""
        device = device_of(self.model)
        hidden: Tensor = self.model.model(
            input_ids=padded([row.token_ids for row in rows], device),
            attention_mask=view.allowed(device) if view.needs_mask else None,
            position_ids=view.positions(device) if view.needs_mask else None,
            past_key_values=view,
            use_cache=True,
            return_dict=True,
        ).last_hidden_state
        return hidden


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


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return ids [R, T]; ids after a row's end are 0 and never seen by real ones (attention is causal)."""
    T = max(len(ids) for ids in rows)
    return torch.tensor([[*ids, *[0] * (T - len(ids))] for ids in rows], device=device)


def last_logits(
    model: "SmolLM3ForCausalLM", hidden: Tensor, lengths: Sequence[int], num_logits: Sequence[int]
) -> Tensor:
    """Return fp32 logits [sum of num_logits, V] at the last real positions of hidden [R, T, N], no others."""
    if not any(num_logits):
        return hidden.new_empty(0, model.config.vocab_size, dtype=torch.float32)
    if hidden.shape[1] == 1 and all(num_logits):
        last = hidden[:, -1]
    else:
        wanted = [
            (row, at)
            for row, (length, num) in enumerate(zip(lengths, num_logits, strict=True))
            for at in range(length - num, length)
        ]
        rows, places = torch.tensor(wanted, dtype=torch.long, device=hidden.device).view(-1, 2).T
        last = hidden[rows, places]  # [sum of num_logits, N]
    logits: Tensor = model.lm_head(last)
    return logits.float()


def _as_numbers(x: Tensor) -> Tensor:
    """What numpy can hold of a tensor: bf16 as its bits."""
    return x if x.dtype == torch.float32 else x.view(torch.int16)


def device_of(model: "SmolLM3ForCausalLM") -> torch.device:
    return model.model.embed_tokens.weight.device
