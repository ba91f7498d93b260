"""What the native engine takes beside weights and cache does not grow with a prompt."""

from pathlib import Path

import pytest
import torch
from load_memory import rss
from tiny_models import tiny_model

from smollm3.engine.runner import Row
from smollm3.model.native_runner import PREFILL_CHUNK, NativeRunner
from smollm3.model.smollm3 import SmolLM3ForCausalLM

WIDE = 65536
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="only Linux tells anonymous memory from a file's pages"
)


def test_scratch_memory_does_not_grow_with_the_chunk() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": WIDE, "num_hidden_layers": 1, "head_dim": 16}
    model = tiny_model(SmolLM3ForCausalLM, **sizes).to(torch.bfloat16)
    runner = NativeRunner(model, threads=2)
    before = rss("RssAnon")
    runner.forward([Row(runner.open(PREFILL_CHUNK), [3] * PREFILL_CHUNK, 0)])
    # The gate and its likes in float alone would be twice this.
    assert rss("RssAnon") - before < PREFILL_CHUNK * WIDE * 4 // 2
