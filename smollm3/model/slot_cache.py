"""Keys and values of many sequences in one tensor per layer: a row per slot, dense from row 0.

In: slots to open, fork and close; for a forward pass, the rows it runs. Out: a cache view for exactly those
rows, which writes each row's new keys at its own length. Knows no model.
Shapes: N rows, R rows of one pass, K kv heads, C room in tokens, D head dim, T new tokens, S keys seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 256  # tokens by which the room rounds up


@dataclass
class Slot:
    """One sequence's place: its row, how many ids it holds and how many it may come to hold."""

    row: int
    capacity: int
    length: int = 0


@dataclass
class SlotCache:
    """Grows in rows and in tokens; with hints of both it has all its room from the first pass on."""

    num_rows: int = 0
    room: int = 0
    slots: dict[int, Slot] = field(default_factory=dict)
    keys: list[Tensor] = field(default_factory=list)  # per layer [N, K, C, D]
    values: list[Tensor] = field(default_factory=list)
    _used: dict[int, int] = field(default_factory=dict)  # row -> tokens that a closed slot has left in it
    _last_slot: int = -1

    def open(self, capacity: int) -> int:
        """Return a new empty slot."""
        self._compact()
        row = len(self.slots)
        self._clear(row)
        return self._add(Slot(row, capacity))

    def fork(self, slot: int) -> int:
        """Return a new slot with a copy of what `slot` holds."""
        source = self.slots[slot]
        copy = self.open(source.capacity)
        target = self.slots[copy]
        if self.keys:
            self._reserve(source.length)
        self._copy_row(source.row, target.row, source.length)
        target.length = source.length
        return copy

    def close(self, slot: int) -> None:
        """Give the slot back; its row is filled by another when next it matters."""
        closed = self.slots.pop(slot)
        self._used[closed.row] = max(closed.length, self._used.get(closed.row, 0))

    def cut(self, slot: int, length: int) -> None:
        """Drop what the slot holds beyond its first `length` ids."""
        held = self.slots[slot]
        if length > held.length:
            raise ValueError(f"slot {slot} holds {held.length} ids, its next cannot be {length}")
        if length < held.length:
            self._used[held.row] = max(held.length, self._used.get(held.row, 0))
            held.length = length

    def copy_out(self, slot: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return copies of the keys and values of a slot's first ids, per layer [K, length, D]."""
        row = self.slots[slot].row
        keys, values = (
            [tensor[row, :, :length].clone() for tensor in part] for part in (self.keys, self.values)
        )
        return keys, values

    def copy_in(self, slot: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Let an empty slot hold these keys and values, per layer [K, length, D]."""
        self._compact()
        held, length = self.slots[slot], keys[0].shape[1]
        self._reserve(length)
        for idx, (k, v) in enumerate(zip(keys, values, strict=True)):
            own_keys, own_values = self.layer(idx, k[None])
            own_keys[held.row, :, :length] = k
            own_values[held.row, :, :length] = v
        held.length = length

    def view(self, slots: Sequence[int], num_new: int, lengths: Sequence[int]) -> "SlotView":
        """Return a cache for one pass over rows that are padded on the right to `num_new` new ids.

        Args:
            slots: in the order of the pass.
            lengths: how many of the new ids are real, per row.
        """
        self._compact()
        places = [self.slots[slot] for slot in slots]
        rows, starts = [place.row for place in places], [place.length for place in places]
        self._reserve(max(starts) + num_new)
        for place, start, length in zip(places, starts, lengths, strict=True):
            place.length = start + length
        return SlotView(self, rows, starts, num_new)

    def _add(self, slot: Slot) -> int:
        self._last_slot += 1
        self.slots[self._last_slot] = slot
        return self._last_slot

    def _compact(self) -> None:
        """Move the last rows into the holes that closed slots have left."""
        num = len(self.slots)
        strays = [slot for slot in self.slots.values() if slot.row >= num]
        if not strays:
            return
        holes = sorted(set(range(num)) - {slot.row for slot in self.slots.values()})
        for slot, hole in zip(strays, holes, strict=True):
            self._clear(hole)
            self._copy_row(slot.row, hole, slot.length)
            self._used[slot.row] = max(slot.length, self._used.get(slot.row, 0))
            slot.row = hole

    def _clear(self, row: int) -> None:
        """Zero what a closed slot has left in a row: what masks hide must still be finite."""
        left = self._used.pop(row, 0)
        for tensor in (*self.keys, *self.values):
            tensor[row : row + 1, :, :left] = 0

    def _copy_row(self, source: int, target: int, length: int) -> None:
        for part in (self.keys, self.values):
            for tensor in part:
                tensor[target, :, :length] = tensor[source, :, :length]

    def _reserve(self, room: int) -> None:
        """Make place for all slots and so many tokens.

        Grows by half or more in either direction, so that tokens are seldom copied, and to no more tokens
        than the slots may come to hold.
        """
        num_rows, num_held, held = len(self.slots), self.num_rows, self.room
        if num_rows <= num_held and room <= held:
            return
        if num_rows > num_held:
            self.num_rows = max(num_rows, num_held + num_held // 2)
        if room > held:
            rounded = -(-max(room, held + held // 2) // BLOCK) * BLOCK
            self.room = max(room, min(rounded, max(slot.capacity for slot in self.slots.values())))
        for part in (self.keys, self.values):
            for idx, old in enumerate(part):
                new = old.new_zeros(self.num_rows, old.shape[1], self.room, old.shape[3])
                new[: old.shape[0], :, : old.shape[2]] = old
                part[idx] = new

    def layer(self, layer_idx: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values [N, K, C, D], made on first use to fit `like` [R, K, T, D]."""
        while len(self.keys) <= layer_idx:
            shape = (self.num_rows, like.shape[1], self.room, like.shape[3])
            self.keys.append(like.new_zeros(shape))
            self.values.append(like.new_zeros(shape))
        return self.keys[layer_idx], self.values[layer_idx]

    def put(
        self, layer_idx: int, rows: Tensor, places: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write k and v [R, K, 1, D], each at its place in its row; return the layer's tensors."""
        keys, values = self.layer(layer_idx, k)
        keys[rows, :, places] = k[:, :, 0]
        values[rows, :, places] = v[:, :, 0]
        return keys, values


def seen_from(places: Tensor, num_keys: int) -> Tensor:
    """Return which keys one new id at each of `places` [R] sees: bool [R, 1, 1, S]."""
    seen = torch.arange(num_keys, device=places.device) <= places[:, None]
    return seen[:, None, None]


class SlotView:
    """The cache of one forward pass over some rows.

    Rows of one length act as a plain cache. Rows of several lengths must bring one id each (T = 1): every
    row's key goes to its own place, and `allowed` is the mask that hides the rest.
    """

    max_cache_len: int | None = None

    def __init__(self, cache: SlotCache, rows: Sequence[int], starts: Sequence[int], num_new: int) -> None:
        even = len(set(starts)) == 1
        assert even or num_new == 1
        self._cache = cache
        self._rows, self._starts = rows, starts
        self._past = max(starts)
        self._dense = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        self.needs_mask = not even
        self._num_seen = self._past + num_new
        self._where: tuple[Tensor, Tensor] | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many ids the longest row held before the pass."""
        return self._past

    @property
    def is_whole(self) -> bool:
        """Whether the pass runs rows 0 to R - 1, in order."""
        return self._dense and self._rows[0] == 0

    def positions(self, device: torch.device) -> Tensor:
        """Return the position of each row's new id, [R, 1]."""
        return torch.tensor(self._starts, device=device)[:, None]

    def allowed(self, device: torch.device) -> Tensor:
        """Return which keys each row's new id sees: bool [R, 1, 1, S]."""
        return seen_from(self.positions(device)[:, 0], self._num_seen)

    def update(self, k: Tensor, v: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write k and v [R, K, T, D] at each row's length; return the rows' keys and values [R, K, S, D]."""
        if self.needs_mask:
            if self._where is None:
                at = torch.tensor([self._rows, self._starts], device=k.device)
                self._where = (at[0], at[1])
            keys, values = self._cache.put(layer_idx, *self._where, k, v)
            return self._rows_of(keys)[:, :, : self._num_seen], self._rows_of(values)[:, :, : self._num_seen]
        keys, values = self._cache.layer(layer_idx, k)
        new = slice(self._past, self._past + k.shape[2])
        if not self._dense:
            rows = torch.tensor(self._rows, device=k.device)
            keys[rows, :, new] = k
            values[rows, :, new] = v
            return keys[rows, :, : self._num_seen], values[rows, :, : self._num_seen]
        keys, values = self._rows_of(keys), self._rows_of(values)
        keys[:, :, new] = k
        values[:, :, new] = v
        return keys[:, :, : self._num_seen], values[:, :, : self._num_seen]

    def _rows_of(self, tensor: Tensor) -> Tensor:
        """A view of the pass's rows where they lie together, else a copy."""
        first = self._rows[0]
        return tensor[first : first + len(self._rows)] if self._dense else tensor[list(self._rows)]
