"""What the native engine takes beside weights and cache does not grow with a prompt."""

from pathlib import Path

import pytest
import torch

from smollm3.engine.runner import Row
from smollm3.model.config import SmolLM3Config
from smollm3.model.native_runner import PREFILL_CHUNK, NativeRunner
from smollm3.model.smollm3 import SmolLM3ForCausalLM

WIDE = 65536
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="only Linux tells anonymous memory from a file's pages"
)


def anonymous() -> int:
    """Bytes of the process's own memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def test_scratch_memory_does_not_grow_with_the_chunk() -> None:
    config = SmolLM3Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=WIDE,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    runner = NativeRunner(SmolLM3ForCausalLM(config).to(torch.bfloat16).eval(), threads=2)
    before = anonymous()
    runner.forward([Row(runner.open(PREFILL_CHUNK), [3] * PREFILL_CHUNK, 0)])
    # The gate and its likes in float alone would be twice this.
    assert anonymous() - before < PREFILL_CHUNK * WIDE * 4 // 2
