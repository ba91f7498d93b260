"""Loading onto a CUDA device: everything arrives there, one copy at most, and no room is one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from smollm3.errors import DeviceError
from smollm3.model.smollm3 import SmolLM3ForCausalLM

pytestmark = pytest.mark.gpu
IDS = torch.arange(4, 16)[None]
SIZES = {"hidden_size": 512, "intermediate_size": 1024, "initializer_range": 0.05}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(SmolLM3ForCausalLM, **SIZES).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("device_map", ["auto", "cuda", 0, {"": 0}, torch.device("cuda", 0)], ids=str)
def test_everything_arrives_on_the_device(device_map: Any, folder: Path) -> None:
    model = SmolLM3ForCausalLM.from_pretrained(folder, device_map=device_map)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device for tensor in tensors} == {torch.device("cuda", 0)}
    assert model.device == torch.device("cuda", 0)
    whole = SmolLM3ForCausalLM.from_pretrained(folder)
    logits = model(IDS.cuda()).logits.cpu()
    torch.testing.assert_close(logits, whole(IDS).logits, atol=1e-3, rtol=1e-3)
    model.save_pretrained(folder)
    again = SmolLM3ForCausalLM.from_pretrained(folder)
    assert all(torch.equal(t, whole.state_dict()[name]) for name, t in again.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_copy_and_one_tensor(dtype: torch.dtype, folder: Path) -> None:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = SmolLM3ForCausalLM.from_pretrained(folder, device_map="cuda", dtype=dtype)
    sizes = [parameter.nbytes for parameter in model.parameters()]
    peak = torch.cuda.max_memory_allocated() - before
    assert sum(sizes) <= peak <= sum(sizes) + max(sizes) + 2**20


def test_a_device_without_room_is_one_line(folder: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(DeviceError, match=r"cuda.* has no room for .* choose a smaller dtype") as caught:
            SmolLM3ForCausalLM.from_pretrained(folder, device_map="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "\n" not in str(caught.value)
