"""The KV slots: growth, holes, forks and the views of a pass, against lists of what was written."""

import random

import torch
from torch import Tensor

from smollm3.model.slot_cache import SlotCache

K, D, LAYERS = 2, 4, 2


class Ledger:
    """Writes random keys into a cache and remembers them per slot."""

    def __init__(self, cache: SlotCache) -> None:
        self.cache = cache
        self.held: dict[int, list[Tensor]] = {}  # slot -> per layer [K, S, D]

    def open(self, capacity: int) -> int:
        slot = self.cache.open(capacity)
        self.held[slot] = [torch.zeros(K, 0, D)] * LAYERS
        return slot

    def fork(self, slot: int) -> int:
        copy = self.cache.fork(slot)
        self.held[copy] = list(self.held[slot])
        return copy

    def close(self, slot: int) -> None:
        self.cache.close(slot)
        del self.held[slot]

    def run(self, slots: list[int], lengths: list[int]) -> None:
        """One pass; checks that every row shows what it holds, and finite numbers elsewhere."""
        slots = sorted(slots, key=lambda slot: self.cache.slots[slot].row)
        T = max(lengths)
        view = self.cache.view(slots, T, lengths)
        allowed = view.allowed(torch.device("cpu")) if view.needs_mask else None
        for layer_idx in range(LAYERS):
            new = torch.randn(len(slots), K, T, D)
            keys, values = view.update(new, -new, layer_idx)
            assert torch.equal(keys, -values)
            assert keys.isfinite().all()
            for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
                held = torch.cat((self.held[slot][layer_idx], new[row, :, :length]), dim=1)
                self.held[slot][layer_idx] = held
                assert torch.equal(keys[row, :, : held.shape[1]], held)
                if allowed is not None:
                    assert allowed.shape == (len(slots), 1, 1, keys.shape[2])
                    assert allowed[row].sum() == held.shape[1]


def lengths_of(ledger: Ledger) -> dict[int, int]:
    return {slot: held[0].shape[1] for slot, held in ledger.held.items()}


def test_random_lives_of_many_slots() -> None:
    for seed in range(25):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        hints = rng.choice([{}, {"num_rows": 3, "room": 40}])
        ledger = Ledger(SlotCache(**hints))
        for _ in range(60):
            action = rng.random()
            slots = list(ledger.held)
            if action < 0.2 or not slots:
                fresh = [ledger.open(1000) for _ in range(rng.randint(1, 3))]
                ledger.run(fresh, [rng.randint(1, 30) for _ in fresh])
            elif action < 0.3:
                ledger.fork(rng.choice(slots))
            elif action < 0.45:
                ledger.close(rng.choice(slots))
            elif action < 0.55:
                ledger.run([rng.choice(slots)], [rng.randint(2, 200)])
            else:
                some = rng.sample(slots, rng.randint(1, len(slots)))
                ledger.run(some, [1] * len(some))


def test_rows_stay_dense_and_slots_keep_their_ids() -> None:
    ledger = Ledger(SlotCache())
    slots = [ledger.open(10) for _ in range(4)]
    ledger.run(slots, [3, 1, 2, 3])
    ledger.close(slots[0])
    ledger.close(slots[2])
    ledger.run([slots[1], slots[3]], [1, 1])
    assert sorted(slot.row for slot in ledger.cache.slots.values()) == [0, 1]
    assert lengths_of(ledger) == {slots[1]: 2, slots[3]: 4}
    assert ledger.open(10) not in slots


def test_what_a_closed_slot_left_cannot_poison_the_next() -> None:
    cache = SlotCache()
    first, second = cache.open(8), cache.open(8)
    view = cache.view([first, second], 3, [3, 3])
    nan = torch.full((2, K, 3, D), torch.nan)
    view.update(nan, nan, 0)
    cache.close(first)
    cache.close(second)
    short, long = cache.open(8), cache.open(8)
    zeros = torch.zeros(1, K, 1, D)
    cache.view([short], 1, [1]).update(zeros, zeros, 0)
    cache.view([long], 2, [2]).update(zeros.expand(-1, -1, 2, -1), zeros.expand(-1, -1, 2, -1), 0)
    keys, values = cache.view([short, long], 1, [1, 1]).update(
        zeros.expand(2, -1, -1, -1), zeros.expand(2, -1, -1, -1), 0
    )
    assert keys.isfinite().all()
    assert values.isfinite().all()


def test_room_is_taken_at_once_or_in_blocks_and_a_decode_step_copies_nothing() -> None:
    hinted = Ledger(SlotCache(num_rows=2, room=32))
    hinted.run([hinted.open(32)], [4])
    assert hinted.cache.keys[0].shape == (2, K, 32, D)
    growing = Ledger(SlotCache())
    slot = growing.open(5000)
    growing.run([slot], [1])
    addresses = set()
    for _ in range(1200):
        growing.run([slot], [1])
        addresses.add(growing.cache.keys[0].data_ptr())
    assert len(addresses) <= 6
    small = Ledger(SlotCache())
    small.run([small.open(9)], [4])
    assert small.cache.room == 9, "never more than the slots may come to hold"


def test_a_pass_over_one_row_or_neighbours_sees_the_cache_itself() -> None:
    ledger = Ledger(SlotCache())
    slots = [ledger.open(100) for _ in range(3)]
    ledger.run(slots, [5, 5, 5])
    for chosen in ([slots[0]], slots[1:], slots):
        view = ledger.cache.view(chosen, 1, [1] * len(chosen))
        new = torch.zeros(len(chosen), K, 1, D)
        keys, _ = view.update(new, new, 0)
        own = ledger.cache.keys[0]
        assert own.data_ptr() <= keys.data_ptr() < own.data_ptr() + own.nbytes
