"""Which KV blocks hold which ids: a tree per salt, a node per block, found by comparing the ids themselves.

A node's ids follow those of its parent, so a way from the root is the beginning of a sequence. Only a leaf
may hold fewer ids than a block. Knows neither memory nor which sequences use a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

MAX_COMPARED = 32  # children, newest first, among which a partly fitting one is looked for


@dataclass(eq=False, slots=True)
class Node:
    """A block and its ids; the root of a salt has neither."""

    parent: "Node | None" = field(repr=False)
    ids: tuple[int, ...]
    block: int
    salt: str
    children: dict[tuple[int, ...], "Node"] = field(default_factory=dict, repr=False)


class PrefixTree:
    """The blocks whose ids are known."""

    def __init__(self) -> None:
        self._roots: dict[str, Node] = {}
        self._nodes: dict[int, Node] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def child(self, before: int | None, salt: str, ids: tuple[int, ...]) -> int | None:
        """Return the block with exactly `ids` after the block `before` (None: at the beginning)."""
        parent = self._parent(before, salt)
        found = parent.children.get(ids) if parent else None
        return found.block if found else None

    def closest(self, before: int | None, salt: str, ids: Sequence[int]) -> tuple[int | None, int]:
        """Return the block after `before` that shares most leading ids with `ids`, and how many."""
        parent = self._parent(before, salt)
        best, most = None, 0
        for node in islice(reversed(parent.children.values()), MAX_COMPARED) if parent else ():
            num = _num_common(node.ids, ids)
            if num > most:
                best, most = node.block, num
        return best, most

    def num_ids(self, block: int) -> int:
        """Return how many ids a block holds."""
        return len(self._nodes[block].ids)

    def add(self, before: int | None, salt: str, ids: tuple[int, ...], block: int) -> None:
        """Note that `block` holds `ids` after the block `before`."""
        parent = self._parent(before, salt)
        if parent is None:
            parent = self._roots[salt] = Node(None, (), -1, salt)
        assert ids not in parent.children
        parent.children[ids] = self._nodes[block] = Node(parent, ids, block, salt)

    def remove(self, block: int) -> None:
        """Forget a block that has no others behind it."""
        node = self._nodes.pop(block)
        assert not node.children, "a block is forgotten before those behind it"
        assert node.parent is not None
        del node.parent.children[node.ids]
        if node.parent.parent is None and not node.parent.children:
            del self._roots[node.salt]

    def _parent(self, before: int | None, salt: str) -> Node | None:
        return self._roots.get(salt) if before is None else self._nodes[before]


def _num_common(a: Sequence[int], b: Sequence[int]) -> int:
    for place, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return place
    return min(len(a), len(b))
