"""Which KV blocks belong to which sequence: block tables with reference counts. Pure bookkeeping.

A fork shares all full blocks of its parent and copies the last, half-filled one, so that the samples of one
prompt cost one prefill. Blocks whose ids are settled enter the prefix tree, where other sequences find them
at once; when no sequence uses them any more they stay there until their room is needed, the least recently
used first. Knows no memory: what must be copied is handed back as (from, to).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from smollm3.native.prefix_tree import PrefixTree

Copy = tuple[int, int]  # from a block, to a block
MIN_COPIED = 8  # ids of a partly fitting block that are worth a copy of it


@dataclass
class _Slot:
    table: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    num_known: int = 0  # first blocks that the tree knows
    salt: str | None = None  # None: its blocks are nobody else's business


class BlockTables:
    """Block tables of the open sequences over a pool of `num_blocks` blocks of `block_size` positions."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: dict[int, None] = {}  # known blocks that no sequence uses, in the order of their last use
        self._uses = [0] * num_blocks
        self._tree = PrefixTree()
        self._slots: dict[int, _Slot] = {}
        self._next_slot = 0

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds; those that are kept for reuse are among them."""
        return len(self._free) + len(self._idle)

    @property
    def num_open(self) -> int:
        """Open slots."""
        return len(self._slots)

    def open(self) -> int:
        """Return a new, empty slot."""
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._slots[slot] = _Slot()
        return slot

    def reuse(self, slot: int, token_ids: Sequence[int], salt: str) -> tuple[int, Copy | None]:
        """Let an empty slot begin with what the tree knows of `token_ids`, all but the last id at most.

        Full blocks are shared; of a block that fits in part a copy is made. Returns the number of ids, and
        the copy. From here on the slot's own blocks are known to others of the same salt.
        """
        held = self._slots[slot]
        assert not held.ids
        held.salt = salt
        size, limit = self.block_size, len(token_ids) - 1
        before = None
        while len(held.ids) + size <= limit:
            at = len(held.ids)
            ids = tuple(token_ids[at : at + size])
            block = self._tree.child(before, salt, ids)
            if block is None:
                break
            self._use(block)
            held.table.append(block)
            held.ids.extend(ids)
            before = block
        held.num_known, at = len(held.table), len(held.ids)
        source, num = self._tree.closest(before, salt, token_ids[at : min(limit, at + size)])
        if source is None or num < MIN_COPIED:
            return at, None
        self._use(source)  # so that it is not what makes room for its own copy
        target = self._take() if self.num_free else None
        self._release([source])
        if target is None:
            return at, None
        held.table.append(target)
        held.ids.extend(token_ids[at : at + num])
        return at + num, (source, target)

    def close(self, slot: int, num_kept: int = 0, salt: str = "") -> None:
        """Give the slot's blocks back; those of its first `num_kept` ids stay known for reuse."""
        held = self._slots.pop(slot)
        if num_kept:
            held.salt = salt if held.salt is None else held.salt
            num_kept = min(num_kept, len(held.ids))
            self._settle(held, num_kept)
            self._settle_tail(held, num_kept)
        self._release(held.table)

    def fork(self, slot: int) -> tuple[int, Copy | None]:
        """Return a slot with the same positions, and the block copy that makes it independent."""
        parent = self._slots[slot]
        full, rest = divmod(len(parent.ids), self.block_size)
        copied = self._take() if rest else None
        shared = parent.table[:full]
        for block in shared:
            self._use(block)
        table = shared if copied is None else [*shared, copied]
        child = self.open()
        self._slots[child] = _Slot(table, list(parent.ids), min(parent.num_known, full), parent.salt)
        return child, None if copied is None else (parent.table[full], copied)

    def table(self, slot: int) -> list[int]:
        """Return the slot's blocks, in the order of their positions."""
        return self._slots[slot].table

    def num_needed(self, slot: int, start: int, count: int) -> int:
        """Return how many blocks `extend` would take."""
        held = self._slots[slot]
        return max(0, self._num_blocks(start + count) - len(held.table)) + self._is_others(held, start)

    def extend(self, slot: int, start: int, token_ids: Sequence[int]) -> Copy | None:
        """Make room for `token_ids` from position `start` on; return the block copy that this needs.

        `start` may lie before the slot's end: what stood there is dropped (the engine took tokens back).
        What stands before `start` is settled: its full blocks enter the tree.
        """
        held = self._slots[slot]
        if start > len(held.ids):
            raise ValueError(f"slot {slot} holds {len(held.ids)} positions, its next cannot be {start}")
        if held.salt is not None:
            self._settle(held, start)
        del held.ids[start:]
        keep = self._num_blocks(start)
        self._release(held.table[keep:])
        del held.table[keep:]
        copy = None
        if self._is_others(held, start):
            copy = held.table[-1], self._take()
            held.table[-1] = copy[1]
            self._release([copy[0]])
        held.num_known = min(held.num_known, start // self.block_size)
        while len(held.table) < self._num_blocks(start + len(token_ids)):
            held.table.append(self._take())
        held.ids.extend(token_ids)
        return copy

    def settle(self, slot: int) -> None:
        """Let others find all full blocks of a slot: what it holds has been computed and no id is a guess."""
        held = self._slots[slot]
        if held.salt is not None:
            self._settle(held, len(held.ids))

    def _num_blocks(self, count: int) -> int:
        return -(-count // self.block_size)

    def _is_others(self, held: _Slot, start: int) -> bool:
        """Whether position `start` lies inside a block that another sequence or the tree relies on."""
        full, rest = divmod(start, self.block_size)
        return bool(rest) and (self._uses[held.table[full]] > 1 or held.table[full] in self._tree)

    def _settle(self, held: _Slot, num_ids: int) -> None:
        """Put the full blocks of the first `num_ids` ids into the tree; what it knows already is shared."""
        assert held.salt is not None
        for idx in range(held.num_known, num_ids // self.block_size):
            before = held.table[idx - 1] if idx else None
            ids = tuple(held.ids[idx * self.block_size : (idx + 1) * self.block_size])
            known = self._tree.child(before, held.salt, ids)
            if known is None:
                self._tree.add(before, held.salt, ids, held.table[idx])
            elif known != held.table[idx]:
                self._use(known)
                self._release([held.table[idx]])
                held.table[idx] = known
            held.num_known = idx + 1

    def _settle_tail(self, held: _Slot, num_ids: int) -> None:
        """Put the last, half-filled block into the tree unless another block holds its ids."""
        full, rest = divmod(num_ids, self.block_size)
        if (
            not rest
            or held.salt is None
            or self._uses[held.table[full]] > 1
            or held.table[full] in self._tree
        ):
            return
        before = held.table[full - 1] if full else None
        ids = tuple(held.ids[full * self.block_size : num_ids])
        other, num = self._tree.closest(before, held.salt, ids)
        # `closest` looks at the newest alone: the same ids may stand further back.
        if num == rest or self._tree.child(before, held.salt, ids) is not None:
            return
        if (
            other is not None and other in self._idle and num == self._tree.num_ids(other) < self.block_size
        ):  # the shorter one is of no more use
            self._forget(other)
            self._free.append(other)
        self._tree.add(before, held.salt, ids, held.table[full])

    def _use(self, block: int) -> None:
        self._uses[block] += 1
        self._idle.pop(block, None)

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        elif self._idle:
            # A block is released after those behind it, so the first of these has none behind it.
            block = next(iter(self._idle))
            self._forget(block)
        else:
            raise MemoryError("the KV cache has no free block left")
        self._uses[block] = 1
        return block

    def _forget(self, block: int) -> None:
        del self._idle[block]
        self._tree.remove(block)

    def _release(self, table: Sequence[int]) -> None:
        for block in reversed(table):
            self._uses[block] -= 1
            if self._uses[block]:
                continue
            if block in self._tree:
                self._idle[block] = None
            else:
                self._free.append(block)
