"""Quantising in stretches gives what bitsandbytes gives for the whole, and holds little memory meanwhile."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from smollm3 import BitsAndBytesConfig, SmolLM3ForCausalLM
from smollm3.errors import ParameterError
from smollm3.quantization.bitsandbytes_library import bitsandbytes
from smollm3.quantization.bitsandbytes_quantize import quantize_4bit, quantize_8bit

# One stretch is 262,144 weights: exactly one, one and a bit, several, with blocks across rows, an odd number.
SHAPES = [(512, 512), (513, 512), (600, 1600), (700, 999), (641, 641)]
PEAK = """
import json, sys, threading
from pathlib import Path
from smollm3 import BitsAndBytesConfig, SmolLM3ForCausalLM
from smollm3.quantization.memory import memory_report
from smollm3.quantization.quantizer import quantizer_for

def held():  # without the file's own pages
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

config = BitsAndBytesConfig(**json.loads(sys.argv[2]))
quantizer_for(config)
start = peak = held()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, held())

thread = threading.Thread(target=watch)
thread.start()
model = SmolLM3ForCausalLM.from_pretrained(sys.argv[1], quantization_config=config)
done.set()
thread.join()
report = memory_report(model)
print(json.dumps([max(peak, held()) - start, report.quantized + report.scales, report.before]))
"""


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_4bit_stretches_are_the_whole(shape: tuple[int, int], quant_type: str, double: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.bfloat16)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double
    )
    codes, state = quantize_4bit(weight, config)
    expected, theirs = bitsandbytes().functional.quantize_4bit(
        weight, quant_type=quant_type, compress_statistics=double
    )
    assert torch.equal(codes, expected)
    ours, wanted = state.as_dict(), theirs.as_dict()
    assert list(ours) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value


@pytest.mark.parametrize("shape", [*SHAPES, (2, 300_000)], ids=str)
def test_int8_stretches_are_the_whole(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.bfloat16)
    codes, row_scales = quantize_8bit(weight)
    expected, scales, _ = bitsandbytes().functional.int8_vectorwise_quant(weight.half())
    assert torch.equal(codes, expected)
    assert torch.equal(row_scales, scales)


def test_a_dtype_without_codes_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"torch\.float64: load with dtype='bfloat16'"):
        quantize_4bit(torch.zeros(2, 2, dtype=torch.float64), BitsAndBytesConfig(load_in_4bit=True))


@pytest.mark.parametrize(
    "asked",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        pytest.param({"load_in_8bit": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_loading_never_holds_the_weights_unquantised(asked: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 10, "head_dim": 192}
    tiny_model(SmolLM3ForCausalLM, **sizes).to(torch.bfloat16).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), json.dumps(asked)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    peak, codes, before = json.loads(done.stdout)
    assert before > 120e6
    assert codes < peak < codes + 0.3 * before, f"{peak / 1e6:.0f} MB for {codes / 1e6:.0f} MB of codes"
    assert peak < 0.9 * before
