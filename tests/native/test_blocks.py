"""Block tables: who owns which block, through growth, forks, take-backs and ends."""

import random

import pytest

from smollm3.native.blocks import BlockTables


def test_a_sequence_takes_blocks_as_it_grows_and_gives_them_back() -> None:
    tables = BlockTables(num_blocks=4, block_size=8)
    slot = tables.open()
    tables.extend(slot, 0, 5)
    tables.extend(slot, 5, 3)
    assert len(tables.table(slot)) == 1
    tables.extend(slot, 8, 1)
    assert len(tables.table(slot)) == 2
    tables.close(slot)
    assert tables.num_free == 4


def test_a_full_cache_says_so() -> None:
    tables = BlockTables(num_blocks=2, block_size=8)
    slot = tables.open()
    with pytest.raises(MemoryError, match="no free block"):
        tables.extend(slot, 0, 17)


def test_a_fork_shares_full_blocks_and_copies_the_last() -> None:
    tables = BlockTables(num_blocks=8, block_size=4)
    parent = tables.open()
    tables.extend(parent, 0, 10)
    child, copy = tables.fork(parent)
    assert tables.table(child)[:2] == tables.table(parent)[:2]
    assert copy == (tables.table(parent)[2], tables.table(child)[2])
    tables.close(parent)
    assert tables.num_free == 8 - 3
    tables.close(child)
    assert tables.num_free == 8


def test_a_fork_at_a_block_border_copies_nothing() -> None:
    tables = BlockTables(num_blocks=8, block_size=4)
    parent = tables.open()
    tables.extend(parent, 0, 8)
    child, copy = tables.fork(parent)
    assert copy is None
    tables.extend(parent, 8, 1)
    tables.extend(child, 8, 1)
    assert tables.table(parent)[2] != tables.table(child)[2]


def test_tokens_can_be_taken_back_but_not_skipped() -> None:
    tables = BlockTables(num_blocks=8, block_size=4)
    slot = tables.open()
    tables.extend(slot, 0, 12)
    tables.extend(slot, 3, 1)
    assert len(tables.table(slot)) == 1
    assert tables.num_free == 7
    with pytest.raises(ValueError, match="holds 4 positions"):
        tables.extend(slot, 9, 1)


def test_random_lives_never_share_a_writable_block() -> None:
    rng = random.Random(0)
    tables = BlockTables(num_blocks=64, block_size=4)
    lengths: dict[int, int] = {}
    for _ in range(2000):
        move = rng.random()
        if move < 0.2 and len(lengths) < 8:
            lengths[tables.open()] = 0
        elif move < 0.3 and lengths and len(lengths) < 8:
            parent = rng.choice(list(lengths))
            child, _copy = tables.fork(parent)
            lengths[child] = lengths[parent]
        elif move < 0.4 and lengths:
            slot = rng.choice(list(lengths))
            tables.close(slot)
            del lengths[slot]
        elif lengths:
            slot = rng.choice(list(lengths))
            if lengths[slot] < 28:
                count = rng.randint(1, 4)
                tables.extend(slot, lengths[slot], count)
                lengths[slot] += count
        tails = [tables.table(s)[n // 4] for s, n in lengths.items() if n % 4]
        assert len(tails) == len(set(tails)), "two sequences would write into one block"
    for slot in list(lengths):
        tables.close(slot)
    assert tables.num_free == 64
