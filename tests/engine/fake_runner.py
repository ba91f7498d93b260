"""A runner that is a table: the next logits are a function of a sequence's ids, so answers are known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smollm3.engine.runner import CacheFullError, Row
from smollm3.native.blocks import BlockTables


class FakeRunner:
    """Logits after ids are row `sum(ids * place) mod P` of a table; slots remember what they took in."""

    def __init__(self, vocab_size: int = 32, context_size: int = 64, seed: int = 0, period: int = 97) -> None:
        self.vocab_size = vocab_size
        self.context_size = context_size
        self.table = torch.randn(period, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2
        self.slots: dict[int, list[int]] = {}
        self.calls: list[list[int]] = []  # the number of ids of each row of each call
        self.num_opened = 0

    def open(self, capacity: int) -> int:
        assert capacity <= self.context_size
        self.num_opened += 1
        self.slots[self.num_opened] = []
        return self.num_opened

    def fork(self, slot: int) -> int:
        self.num_opened += 1
        self.slots[self.num_opened] = list(self.slots[slot])
        return self.num_opened

    def reuse(self, slot: int, token_ids: Sequence[int], salt: str = "") -> int:
        return 0

    def close(self, slot: int, token_ids: Sequence[int] = (), salt: str = "") -> None:
        del self.slots[slot]

    @property
    def num_open(self) -> int:
        return len(self.slots)

    @property
    def cache_tokens_used(self) -> int:
        return sum(len(ids) for ids in self.slots.values())

    @property
    def cache_tokens_total(self) -> int | None:
        return None

    def fits(self, rows: Sequence[Row]) -> bool:
        return True

    def forward(self, rows: Sequence[Row]) -> Tensor:
        assert len({row.slot for row in rows}) == len(rows)
        self.calls.append([len(row.token_ids) for row in rows])
        logits = [torch.empty(0, self.vocab_size)]
        for row in rows:
            held = self.slots[row.slot]
            assert row.start <= len(held)
            assert len(row.token_ids) > 0
            held[row.start :] = row.token_ids
            for end in range(len(held) - row.num_logits + 1, len(held) + 1):
                logits.append(self.logits_after(held[:end])[None])
        return torch.cat(logits)

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        self.calls.append([len(row.token_ids) for row in rows])
        for row in rows:
            assert row.start <= len(self.slots[row.slot])
            self.slots[row.slot][row.start :] = row.token_ids
        return torch.cat([self.states_of(row) for row in rows])

    def states_of(self, row: Row) -> Tensor:
        """Two numbers per id: itself, and a third of itself by its place, so that the order of sums shows."""
        places = range(row.start, row.start + len(row.token_ids))
        return torch.tensor([[i, i / 3 + place] for place, i in zip(places, row.token_ids, strict=True)])

    def logits_after(self, ids: Sequence[int]) -> Tensor:
        return self.table[
            sum((place + 1) * token_id for place, token_id in enumerate(ids)) % len(self.table)
        ].clone()

    def greedy(self, ids: Sequence[int], num: int) -> list[int]:
        known = list(ids)
        for _ in range(num):
            known.append(int(self.logits_after(known).argmax()))
        return known[len(ids) :]


class PagedRunner(FakeRunner):
    """The same table over a paged cache of `num_blocks` blocks: logits come from what the blocks hold."""

    BLOCK_SIZE = 16

    def __init__(self, num_blocks: int = 16, context_size: int = 256, **settings: int) -> None:
        super().__init__(context_size=context_size, **settings)
        self.tables = BlockTables(num_blocks, self.BLOCK_SIZE)
        self.memory = [[-1] * self.BLOCK_SIZE for _ in range(num_blocks)]

    @property
    def num_open(self) -> int:
        return self.tables.num_open

    @property
    def cache_tokens_used(self) -> int:
        return (self.tables.num_blocks - self.tables.num_free) * self.BLOCK_SIZE

    @property
    def cache_tokens_total(self) -> int | None:
        return self.tables.num_blocks * self.BLOCK_SIZE

    def open(self, capacity: int) -> int:
        assert capacity <= self.context_size
        return self.tables.open()

    def fork(self, slot: int) -> int:
        try:
            child, copy = self.tables.fork(slot)
        except MemoryError as error:
            raise CacheFullError(str(error)) from None
        self._copy(copy)
        return child

    def reuse(self, slot: int, token_ids: Sequence[int], salt: str = "") -> int:
        num, copy = self.tables.reuse(slot, token_ids, salt)
        self._copy(copy)
        return num

    def close(self, slot: int, token_ids: Sequence[int] = (), salt: str = "") -> None:
        self.tables.close(slot, len(token_ids), salt)

    def fits(self, rows: Sequence[Row]) -> bool:
        needed = (self.tables.num_needed(row.slot, row.start, len(row.token_ids)) for row in rows)
        return sum(needed) <= self.tables.num_free

    def forward(self, rows: Sequence[Row]) -> Tensor:
        self.calls.append([len(row.token_ids) for row in rows])
        for row in rows:
            self._copy(self.tables.extend(row.slot, row.start, row.token_ids))
        logits = [torch.empty(0, self.vocab_size)]
        for row in rows:
            table, end = self.tables.table(row.slot), row.start + len(row.token_ids)
            for place, token_id in enumerate(row.token_ids, row.start):
                self.memory[table[place // self.BLOCK_SIZE]][place % self.BLOCK_SIZE] = token_id
            held = [self.memory[table[at // self.BLOCK_SIZE]][at % self.BLOCK_SIZE] for at in range(end)]
            logits += [self.logits_after(held[:at])[None] for at in range(end - row.num_logits + 1, end + 1)]
        for row in rows:
            if row.num_logits < 2:
                self.tables.settle(row.slot)
        return torch.cat(logits)

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        self.calls.append([len(row.token_ids) for row in rows])
        for row in rows:
            self._copy(self.tables.extend(row.slot, row.start, row.token_ids))
        return torch.cat([self.states_of(row) for row in rows])

    def _copy(self, copy: tuple[int, int] | None) -> None:
        if copy:
            self.memory[copy[1]] = list(self.memory[copy[0]])

    @property
    def is_clean(self) -> bool:
        return self.tables.num_open == 0 and self.tables.num_free == self.tables.num_blocks
