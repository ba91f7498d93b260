"""Loading needs one copy of the weights and one tensor: measured on a model of more than 500 MB."""

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from smollm3.model.config import SmolLM3Config
from smollm3.model.smollm3 import SmolLM3ForCausalLM

MB = 10**6
PROGRAM = Path(__file__).with_name("load_memory.py")
# Anonymous memory beside weights: modules, headers, the allocator's own.
SLACK = 10 * MB
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="only Linux tells anonymous memory from a file's pages"
)


def config() -> SmolLM3Config:
    return SmolLM3Config(
        vocab_size=16384,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=2,
        rope_theta=5e6,
        dtype="bfloat16",
        architectures=["SmolLM3ForCausalLM"],
    )


def write_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write bfloat16 tensors of random values from one small block, without ever holding a tensor."""
    torch.manual_seed(0)
    block = torch.randn(2**20).bfloat16().view(torch.uint8).numpy().tobytes()
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            left = 2 * torch.Size(shape).numel()
            while left:
                left -= file.write(block[:left])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sharded checkpoint of 521 MB, removed at the end."""
    path = tmp_path_factory.mktemp("large")
    with torch.device("meta"):
        model = SmolLM3ForCausalLM(config())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    names = list(shapes)
    shards = {"model-00001-of-00002.safetensors": names[:90], "model-00002-of-00002.safetensors": names[90:]}
    for file, held in shards.items():
        write_file(path / file, {name: shapes[name] for name in held})
    weight_map = {name: file for file, held in shards.items() for name in held}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text(config().to_json_string())
    yield path
    shutil.rmtree(path)


def cost(folder: Path, dtype: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), dtype], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, float] = json.loads(done.stdout)
    return report


def test_weights_of_the_dtype_asked_for_stay_in_the_files_pages(folder: Path) -> None:
    report = cost(folder, "auto")
    assert report["copy"] > 500 * MB
    assert report["peak"] < SLACK
    assert report["read"] < SLACK  # also after every page has been looked at
    assert not report["imported"]  # a compiler would cost more than the whole load


def test_a_cast_needs_one_copy_and_one_tensor(folder: Path) -> None:
    report = cost(folder, "float16")
    assert report["copy"] > 500 * MB
    assert report["loaded"] > report["copy"] - MB  # the measure sees the weights
    assert report["largest"] < 40 * MB  # so that a second copy could not hide in the bound
    assert report["peak"] < report["copy"] + report["largest"] + SLACK
