"""Weights that move from a mapped file into huge pages: same bits, no memory twice, all else untouched."""

import gc
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model

from smollm3 import SmolLM3ForCausalLM
from smollm3.engine.runner import Row
from smollm3.model.native_runner import NativeRunner
from smollm3.native.settling import Settler

SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3}
ON_LINUX = sys.platform.startswith("linux")  # elsewhere weights stay in the file


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain")
    tiny_model(SmolLM3ForCausalLM, **SIZES).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def packed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed")
    SmolLM3ForCausalLM.from_pretrained(plain, quantization_config="int4").save_pretrained(path)
    return path


def step(runner: NativeRunner) -> torch.Tensor:
    slot = runner.open(8)
    logits = runner.forward([Row(slot, [5, 9, 11, 40], 0)])
    runner.close(slot)
    return logits


def test_piece_by_piece_the_weights_move_and_no_bit_changes(packed: Path) -> None:
    runner = NativeRunner(SmolLM3ForCausalLM.from_pretrained(packed), max_cache_tokens=256)
    before = step(runner)
    left = [runner.network.settle(10_000)]
    while left[-1]:
        assert torch.equal(step(runner), before)
        left.append(runner.network.settle(10_000))
    assert left == sorted(left, reverse=True)
    assert len(left) > 5 or not ON_LINUX
    assert torch.equal(step(runner), before)
    assert runner.network.settle(10_000) == 0


def test_weights_in_memory_stay_where_they_are(plain: Path) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(plain, quantization_config="int4")
    runner = NativeRunner(model, max_cache_tokens=256)
    before = step(runner)
    assert runner.network.settle(1) == 0
    assert torch.equal(step(runner), before)
    model.lm_head.weight.data.zero_()  # the runner still reads what the model holds
    assert not torch.equal(step(runner), before)


def test_a_thread_moves_them_while_steps_run(packed: Path) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(packed)
    runner = NativeRunner(model, max_cache_tokens=256)
    before = step(runner)
    settler = Settler(runner.network)
    same = [torch.equal(step(runner), before) for _ in range(20)]
    settler.wait()
    assert all(same)
    assert torch.equal(step(runner), before)
    assert runner.network.settle(1) == 0


def test_the_model_itself_still_has_its_weights(packed: Path) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(packed)
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runner = NativeRunner(model, max_cache_tokens=256)
    while runner.network.settle(1 << 20):
        pass
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_a_settler_keeps_no_network_alive(packed: Path) -> None:
    runner = NativeRunner(SmolLM3ForCausalLM.from_pretrained(packed), max_cache_tokens=256)
    network = weakref.ref(runner.network)
    step(runner)
    settler = Settler(runner.network)
    del runner
    settler.wait()
    gc.collect()
    assert network() is None
    assert not [thread for thread in threading.enumerate() if thread.name == "smollm3-settle"]
