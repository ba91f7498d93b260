"""Weights that move from a mapped file into huge pages: same bits, no memory twice, all else untouched."""

import gc
import subprocess
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

SIZES = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "head_dim": 32}
HUGE_PAGE = 2 << 20
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


def file_bytes(path: Path) -> int:
    """Return how much of a folder's file this process maps."""
    parts = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [part[0].split("-") for part in parts if part[-1] == str(path / "model.safetensors")]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


def test_piece_by_piece_the_weights_move_and_no_bit_changes(packed: Path) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(packed)
    runner = NativeRunner(model, max_cache_tokens=256)
    before, addresses = step(runner), [tensor.data_ptr() for tensor in model.state_dict().values()]
    left = [runner.network.settle(0), runner.network.settle(1)]
    while left[-1]:
        assert torch.equal(step(runner), before)
        left.append(runner.network.settle(1))
    assert left == list(range(left[0], -1, -HUGE_PAGE))
    assert torch.equal(step(runner), before)
    assert runner.network.settle(1) == 0
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == addresses
    if ON_LINUX:
        assert len(left) > 4
        assert file_bytes(packed) <= (packed / "model.safetensors").stat().st_size - left[0] + 4096


def test_what_an_owner_changes_is_what_runs(packed: Path) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(packed)
    runner = NativeRunner(model, max_cache_tokens=256)
    Settler(runner.network).wait()
    before = step(runner)
    model.lm_head.weight.data.zero_()
    assert not torch.equal(step(runner), before)


def test_bfloat16_weights_stay_in_the_file(plain: Path) -> None:
    runner = NativeRunner(SmolLM3ForCausalLM.from_pretrained(plain), max_cache_tokens=256)
    assert runner.network.settle(0) == 0


def test_two_runners_share_what_has_moved(packed: Path) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(packed)
    first, second = (NativeRunner(model, max_cache_tokens=256) for _ in range(2))
    before = step(first)
    Settler(first.network).wait()
    assert second.network.settle(0) == 0
    del first
    gc.collect()
    assert torch.equal(step(second), before)


def test_where_memory_is_scarce_weights_stay_in_the_file(packed: Path) -> None:
    runner = NativeRunner(SmolLM3ForCausalLM.from_pretrained(packed), max_cache_tokens=256)
    left = runner.network.settle(0)
    Settler(runner.network, share=0.0).wait()
    assert runner.network.settle(0) == left


@pytest.mark.skipif(not ON_LINUX, reason="nothing moves")
def test_where_memory_runs_out_the_rest_stays_in_the_file(packed: Path) -> None:
    program = f"""
import resource, torch
from smollm3 import SmolLM3ForCausalLM
from smollm3.engine.runner import Row
from smollm3.model.native_runner import NativeRunner
from smollm3.native.settling import Settler

runner = NativeRunner(SmolLM3ForCausalLM.from_pretrained({str(packed)!r}), max_cache_tokens=256)
row = Row(runner.open(8), [5, 9, 11, 40], 0)
before, left = runner.forward([row]), runner.network.settle(0)
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (12 << 20), resource.RLIM_INFINITY))
Settler(runner.network).wait()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(runner.network.settle(0) == left > 8 << 20, torch.equal(runner.forward([row]), before))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True True\n", "")


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
