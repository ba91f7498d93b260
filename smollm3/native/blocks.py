"""Which KV blocks belong to which sequence: block tables with reference counts. Pure bookkeeping.

A fork shares all full blocks of its parent and copies the last, half-filled one, so that the samples of one
prompt cost one prefill. Knows neither memory nor tokens.
"""

from dataclasses import dataclass, field


@dataclass
class _Slot:
    table: list[int] = field(default_factory=list)
    length: int = 0  # positions in the cache


class BlockTables:
    """Block tables of the open sequences over a pool of `num_blocks` blocks of `block_size` positions."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._uses = [0] * num_blocks
        self._slots: dict[int, _Slot] = {}
        self._next_slot = 0

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    def open(self) -> int:
        """Return a new, empty slot."""
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._slots[slot] = _Slot()
        return slot

    def close(self, slot: int) -> None:
        """Give the slot's blocks back; a block that a fork still uses stays."""
        self._release(self._slots.pop(slot).table)

    def fork(self, slot: int) -> tuple[int, tuple[int, int] | None]:
        """Return a slot with the same positions, and the block copy (from, to) that makes it independent."""
        parent = self._slots[slot]
        full, rest = divmod(parent.length, self.block_size)
        copied = self._take() if rest else None
        child = self.open()
        shared = parent.table[:full]
        for block in shared:
            self._uses[block] += 1
        table = shared if copied is None else [*shared, copied]
        self._slots[child] = _Slot(table, parent.length)
        return child, None if copied is None else (parent.table[full], copied)

    def table(self, slot: int) -> list[int]:
        """Return the slot's blocks, in the order of their positions."""
        return self._slots[slot].table

    def extend(self, slot: int, start: int, count: int) -> None:
        """Make room for `count` positions from `start` on.

        `start` may lie before the slot's end: what stood there is dropped (the engine took tokens back).
        """
        held = self._slots[slot]
        if start > held.length:
            raise ValueError(f"slot {slot} holds {held.length} positions, its next cannot be {start}")
        needed = -(-(start + count) // self.block_size)
        self._release(held.table[needed:])
        del held.table[needed:]
        while len(held.table) < needed:
            held.table.append(self._take())
        held.length = start + count

    def _take(self) -> int:
        if not self._free:
            raise MemoryError("the KV cache has no free block left")
        block = self._free.pop()
        self._uses[block] = 1
        return block

    def _release(self, table: list[int]) -> None:
        for block in table:
            self._uses[block] -= 1
            if not self._uses[block]:
                self._free.append(block)
