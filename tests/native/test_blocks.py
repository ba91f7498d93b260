"""Block tables: who owns which block, through growth, forks, take-backs and ends."""

import random

import pytest

from smollm3.native.blocks import BlockTables


def test_a_sequence_takes_blocks_as_it_grows_and_gives_them_back() -> None:
    tables = BlockTables(num_blocks=4, block_size=8)
    slot = tables.open()
    tables.extend(slot, 0, range(5))
    tables.extend(slot, 5, range(3))
    assert len(tables.table(slot)) == 1
    tables.extend(slot, 8, range(1))
    assert len(tables.table(slot)) == 2
    tables.close(slot)
    assert tables.num_free == 4


def test_a_full_cache_says_so() -> None:
    tables = BlockTables(num_blocks=2, block_size=8)
    slot = tables.open()
    with pytest.raises(MemoryError, match="no free block"):
        tables.extend(slot, 0, range(17))


def test_a_fork_shares_full_blocks_and_copies_the_last() -> None:
    tables = BlockTables(num_blocks=8, block_size=4)
    parent = tables.open()
    tables.extend(parent, 0, range(10))
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
    tables.extend(parent, 0, range(8))
    child, copy = tables.fork(parent)
    assert copy is None
    tables.extend(parent, 8, range(1))
    tables.extend(child, 8, range(1))
    assert tables.table(parent)[2] != tables.table(child)[2]


def test_tokens_can_be_taken_back_but_not_skipped() -> None:
    tables = BlockTables(num_blocks=8, block_size=4)
    slot = tables.open()
    tables.extend(slot, 0, range(12))
    tables.extend(slot, 3, range(1))
    assert len(tables.table(slot)) == 1
    assert tables.num_free == 7
    with pytest.raises(ValueError, match="holds 4 positions"):
        tables.extend(slot, 9, range(1))


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
                tables.extend(slot, lengths[slot], range(count))
                lengths[slot] += count
        tails = [tables.table(s)[n // 4] for s, n in lengths.items() if n % 4]
        assert len(tails) == len(set(tails)), "two sequences would write into one block"
    for slot in list(lengths):
        tables.close(slot)
    assert tables.num_free == 64


def filled(tables: BlockTables, ids: list[int], salt: str = "") -> int:
    """A new sequence of these ids, as the engine makes one."""
    slot = tables.open()
    num, _ = tables.reuse(slot, ids, salt)
    tables.extend(slot, num, ids[num:])
    return slot


def test_a_closed_past_is_taken_over_by_full_blocks_and_a_copy_of_the_part_that_fits() -> None:
    tables = BlockTables(num_blocks=8, block_size=16)
    ids = list(range(100, 145))  # 16 + 16 + 13
    slot = filled(tables, ids)
    table = list(tables.table(slot))
    tables.close(slot, len(ids))
    assert tables.num_free == 8, "what is kept counts as room"
    slot = tables.open()
    assert tables.reuse(slot, [*ids, 1, 2], "") == (45, (table[2], tables.table(slot)[2]))
    assert tables.table(slot)[:2] == table[:2]
    assert tables.table(slot)[2] != table[2]
    tables.close(slot)
    for other, num in (([*ids[:40], 7], 40), (ids, 44), (ids[:33], 32), (ids[:32], 31), ([0, *ids], 0)):
        slot = tables.open()
        assert tables.reuse(slot, other, "")[0] == num
        tables.close(slot)
    assert tables.num_free == 8


def test_another_salt_and_a_collision_of_hashes_find_nothing() -> None:
    tables = BlockTables(num_blocks=8, block_size=4)
    ids = [0, -1, 5, 6, 7]
    tables.close(filled(tables, ids, "a"), 5)
    slot = tables.open()
    assert tables.reuse(slot, ids, "b")[0] == 0
    assert hash((0, -1, 5, 6)) == hash((0, -2, 5, 6)), "CPython hashes -1 and -2 alike"
    slot = tables.open()
    assert tables.reuse(slot, [0, -2, 5, 6, 7], "a")[0] == 0
    slot = tables.open()
    assert tables.reuse(slot, ids, "a")[0] == 4


def test_full_blocks_of_a_running_sequence_are_found_and_equal_ones_become_one() -> None:
    tables = BlockTables(num_blocks=8, block_size=4)
    ids = list(range(12))
    first, second = filled(tables, ids), filled(tables, ids)  # side by side: each computes its own
    assert set(tables.table(first)).isdisjoint(tables.table(second))
    tables.extend(first, 12, [99])
    third = tables.open()
    assert tables.reuse(third, ids, "")[0] == 8
    tables.extend(second, 12, [98])
    assert tables.table(first)[:3] == tables.table(second)[:3]
    assert tables.table(first)[3] != tables.table(second)[3]
    for slot in (first, second, third):
        tables.close(slot)
    assert tables.num_free == 8


def test_room_comes_from_the_least_recently_used_past_and_from_its_end() -> None:
    tables = BlockTables(num_blocks=4, block_size=4)
    old, new = [*range(8), 0], [*range(50, 58), 0]
    tables.close(filled(tables, old[:8]), 8)
    tables.close(filled(tables, new[:8]), 8)
    slot = filled(tables, [9, 9, 9])
    found = []
    for ids in (old, new):
        probe = tables.open()
        found.append(tables.reuse(probe, ids, "")[0])
        tables.close(probe)
    assert found == [4, 8]
    tables.close(slot)


def test_what_the_tree_or_a_fork_relies_on_is_copied_before_it_is_written() -> None:
    tables = BlockTables(num_blocks=8, block_size=4)
    slot = filled(tables, list(range(8)))
    tables.extend(slot, 8, [8])
    before = list(tables.table(slot))
    assert tables.num_needed(slot, 6, 2) == 1
    assert tables.extend(slot, 6, [70, 71]) == (before[1], tables.table(slot)[1])
    probe = tables.open()
    assert tables.reuse(probe, [*range(8), 0], "")[0] == 8, "the settled ids are still known"
    child, _ = tables.fork(slot)
    shared = tables.table(slot)[1]
    assert tables.extend(child, 5, [1]) == (shared, tables.table(child)[1])


@pytest.mark.parametrize("seed", range(5))
def test_random_lives_with_reuse_never_leak_nor_mix(seed: int) -> None:
    """What a block holds is modelled as ids per position; what a slot reads there must be its own ids."""
    rng = random.Random(seed)
    num_blocks, size = 24, 4
    tables = BlockTables(num_blocks, size)
    memory = [[-1] * size for _ in range(num_blocks)]
    held: dict[int, list[int]] = {}

    def copy(pair: tuple[int, int] | None) -> None:
        if pair:
            memory[pair[1]] = list(memory[pair[0]])

    def write(slot: int, start: int, ids: list[int]) -> None:
        if tables.num_needed(slot, start, len(ids)) > tables.num_free:
            return
        copy(tables.extend(slot, start, ids))
        held[slot] = held[slot][:start] + ids
        for place in range(start, start + len(ids)):
            memory[tables.table(slot)[place // size]][place % size] = held[slot][place]

    for _ in range(1500):
        move, slot = rng.random(), rng.choice(list(held)) if held else -1
        if not held or (move < 0.25 and len(held) < 6):
            ids = [rng.randint(0, 1) for _ in range(rng.randint(1, 14))]
            slot = tables.open()
            num, pair = tables.reuse(slot, ids, rng.choice("ab"))
            copy(pair)
            held[slot] = ids[:num]
            write(slot, num, ids[num:])
        elif move < 0.35 and len(held) < 6 and tables.num_free:
            child, pair = tables.fork(slot)
            copy(pair)
            held[child] = list(held[slot])
        elif move < 0.55:
            tables.close(slot, rng.randint(0, len(held.pop(slot))))
        elif len(held[slot]) < 20:
            start = rng.randint(max(0, len(held[slot]) - 3), len(held[slot]))
            write(slot, start, [rng.randint(0, 1) for _ in range(rng.randint(1, 4))])
        for slot, ids in held.items():
            read = [memory[tables.table(slot)[place // size]][place % size] for place in range(len(ids))]
            assert read == ids
    for slot in held:
        tables.close(slot)
    assert tables.num_free == num_blocks
    assert tables.num_open == 0


def test_an_ending_that_many_newer_ones_hide_is_not_kept_twice() -> None:
    blocks = BlockTables(100, 8)
    for number in [*range(40), 0]:
        slot = blocks.open()
        assert blocks.reuse(slot, [number, 1, 2, 3], "") == (0, None)
        blocks.extend(slot, 0, [number, 1, 2])
        blocks.close(slot, 3)
    assert blocks.num_free == 100
