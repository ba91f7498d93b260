"""A runner that is a table: the next logits are a function of a sequence's ids, so answers are known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smollm3.engine.runner import Row


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

    def hidden(self, token_ids: Sequence[int]) -> Tensor:
        return torch.tensor([[float(token_id)] for token_id in token_ids])

    def logits_after(self, ids: Sequence[int]) -> Tensor:
        return self.table[
            sum((place + 1) * token_id for place, token_id in enumerate(ids)) % len(self.table)
        ].clone()

    def greedy(self, ids: Sequence[int], num: int) -> list[int]:
        known = list(ids)
        for _ in range(num):
            known.append(int(self.logits_after(known).argmax()))
        return known[len(ids) :]
