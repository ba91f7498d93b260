"""What the native engine remembers: pasts taken over, forked, taken back, saved; and how much fits."""

import pytest
import torch
from native_models import pair, prompt
from torch import Tensor

from smollm3.engine.runner import CacheFullError, Row
from smollm3.errors import ParameterError
from smollm3.model.native_runner import NativeRunner


def forward(runner: NativeRunner, slot: int, ids: list[int], start: int) -> Tensor:
    return runner.forward([Row(slot, ids[start:], start)])[0]


def test_a_past_is_taken_over_from_closed_and_from_running_slots_with_the_same_bits() -> None:
    model, _ = pair("int4")
    ids = prompt(200)
    fresh = NativeRunner(model)
    expected = forward(fresh, fresh.open(300), ids, 0)
    runner = NativeRunner(model, max_cache_tokens=64 * 8)
    first = runner.open(300)
    assert runner.reuse(first, ids) == 0
    forward(runner, first, ids, 0)
    forward(runner, first, [*ids, 3], 200)  # from here on the prompt is settled
    second = runner.open(300)
    assert runner.reuse(second, ids) == 192
    assert torch.equal(forward(runner, second, ids, 192), expected)
    runner.close(first, [*ids, 3])
    third = runner.open(300)
    assert runner.reuse(third, [*ids[:150], *ids]) == 150, "part of a block is copied"
    assert torch.equal(forward(runner, third, [*ids[:150], *ids[150:]], 150), expected)
    for slot in (second, third):
        runner.close(slot)
    assert runner.cache_tokens_used == 0
    other = runner.open(300)
    assert runner.reuse(other, ids, "another salt") == 0


def test_several_logits_of_a_row_are_those_of_single_steps_and_a_draft_can_be_taken_back() -> None:
    model, _ = pair("int4")
    ids = prompt(530)
    plain = NativeRunner(model)
    slot = plain.open(600)
    expected = [plain.forward([Row(slot, ids[:520], 0)])[0]]
    expected += [plain.forward([Row(slot, [ids[i]], i)])[0] for i in range(520, 530)]
    runner = NativeRunner(model)
    slot, other = runner.open(600), runner.open(600)
    logits = runner.forward([Row(other, ids[:300], 0, 0), Row(slot, ids[:520], 0, 1)])
    assert torch.equal(logits, torch.stack(expected[:1]))
    runner.forward([Row(slot, [*ids[520:524], 7, 8, 9], 520, 7)])  # three of these are wrong
    logits = runner.forward([Row(other, ids[300:], 300, 2), Row(slot, ids[524:], 524, 6)])
    assert torch.equal(logits[:1], expected[-2][None])
    assert torch.equal(logits[2:], torch.stack(expected[5:]))


@pytest.mark.parametrize("kv_bits", [16, 8])
def test_a_past_can_be_saved_and_given_to_another_runner(kv_bits: int) -> None:
    model, _ = pair("int4")
    ids = prompt(150)
    runner = NativeRunner(model, kv_bits=kv_bits)
    slot = runner.open(200)
    expected = forward(runner, slot, ids, 0)
    saved = {name: array.copy() for name, array in runner.export_past(slot, 140).items()}
    runner.close(slot)
    other = NativeRunner(model, kv_bits=kv_bits, max_cache_bytes=4 * runner.network.block_bytes)
    assert other.cache_tokens_total == 4 * 64
    other.import_past(ids[:140], saved, salt="s")
    other.import_past(ids[:140], saved, salt="s")
    assert other.cache_tokens_used == 0
    slot = other.open(200)
    assert other.reuse(slot, ids) == 0
    assert other.reuse(slot, ids, "s") == 140
    assert torch.equal(forward(other, slot, ids, 140), expected)
    with pytest.raises(ParameterError, match="save it anew"):
        other.import_past(ids[:64], saved)
    with pytest.raises(CacheFullError, match="no room"):
        NativeRunner(model, kv_bits=kv_bits, max_cache_tokens=64).import_past(ids[:140], saved)
    with pytest.raises(ParameterError, match="one block"):
        NativeRunner(model, max_cache_bytes=1000)


def test_fits_counts_blocks() -> None:
    model, _ = pair("bf16")
    runner = NativeRunner(model, max_cache_tokens=256)
    a, b = runner.open(200), runner.open(200)
    assert runner.fits([Row(a, prompt(128), 0), Row(b, prompt(128), 0)])
    assert not runner.fits([Row(a, prompt(129), 0), Row(b, prompt(128), 0)])
    runner.forward([Row(a, prompt(190), 0)])
    runner.forward([Row(a, [1] * 2, 190), Row(b, prompt(3), 0)])
    with pytest.raises(CacheFullError):
        runner.fork(b)
    runner.close(a, prompt(190))
    assert runner.fits([Row(b, prompt(189), 3)])
    runner.fork(b)
