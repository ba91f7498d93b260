"""safetensors: what is written is read, and headers that lie are refused in one line."""

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from smollm3.checkpoint.safetensors import INDEX, open_safetensors, save_shards, shard_files
from smollm3.checkpoint.source import open_checkpoint
from smollm3.errors import CheckpointError

EVERY_DTYPE = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with this header, as JSON unless it is bytes already."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def item(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(path: Path, header: Any, data: bytes = bytes(8), **how: Any) -> str:
    write(path, header, data, **how)
    begin = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    assert time.process_time() - begin < 30, "a bad header must not cost more than reading it"
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# Reading


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.randint(0, 2, (3, 5)).to(dtype) for dtype in EVERY_DTYPE} | {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    file = open_safetensors(tmp_path / "x.safetensors")
    assert set(file.tensors) == set(tensors)
    for name, expected in tensors.items():
        loaded = file.load(name)
        assert loaded.dtype == expected.dtype
        assert loaded.shape == expected.shape
        assert torch.equal(
            loaded.view(torch.uint8) if loaded.numel() > 1 else loaded,
            expected.view(torch.uint8) if expected.numel() > 1 else expected,
        )


def test_names_of_quantization_companions_are_names_like_others(tmp_path: Path) -> None:
    names = ["w.weight", "w.weight.absmax", "w.weight.quant_map", "w.weight.quant_state.bitsandbytes__nf4"]
    save_file({name: torch.arange(8, dtype=torch.uint8) for name in names}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path) as checkpoint:
        assert sorted(checkpoint.names()) == sorted(names)
        assert torch.equal(checkpoint.load(names[3]), torch.arange(8, dtype=torch.uint8))


def test_tensors_share_the_files_pages_and_cannot_change_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000), "b": torch.ones(10)}, path)
    before, file = path.read_bytes(), open_safetensors(path)
    first, second = file.load("a"), file.load("a")
    assert first.data_ptr() == second.data_ptr()
    assert first.untyped_storage().data_ptr() == file.load("b").untyped_storage().data_ptr(), "one mapping"
    first.zero_()
    assert path.read_bytes() == before


def test_unaligned_tensors_are_read_too(tmp_path: Path) -> None:
    header = {"byte": item("U8", [1], 0, 1), "float": item("F32", [2], 1, 9)}
    data = b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    file = open_safetensors(write(tmp_path / "x.safetensors", raw, data))
    assert file.load("float").tolist() == [1.5, -2.0]
    assert file.load("byte").tolist() == [7]


# Headers that lie (case 20)


@pytest.mark.parametrize("length", [0, 1, 2**24, 2**40, 2**63, 2**64 - 1])
def test_the_header_does_not_fit_the_file(length: int, tmp_path: Path) -> None:
    refused(tmp_path / "x.safetensors", {"a": item()}, length=length)


@pytest.mark.parametrize("content", [b"", b"\x00", bytes(7)])
def test_files_that_are_too_short_for_a_header(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated"):
        open_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "raw",
    [
        b"not json",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    ids=[
        "text",
        "list",
        "string",
        "bytes",
        "nan",
        "infinity",
        "duplicate",
        "nested",
        "nested-objects",
        "digits",
    ],
)
def test_headers_that_are_no_json_object(raw: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "x.safetensors", raw)


@pytest.mark.parametrize(
    "wrong",
    [
        item(begin=-8, end=0),
        item(begin=8, end=0),
        item(end=16),
        item(end=2**63 + 8),
        item(begin="0"),
        item(begin=0.0, end=8.0),
        item(begin=False, end=8),
        item(shape=[-2]),
        item(shape=[2.0]),
        item(shape=[True, 2]),
        item(shape=2),
        item(shape=None),
        item(shape=[2**32, 2**32]),
        item(shape=[2**62, 4]),
        item(shape=[10**18] * 100_000),
        item(shape=[1] * 9 + [2]),
        item(shape=[3]),
        item(dtype="F64"),
        item(dtype="F32 "),
        item(dtype=["F32"]),
        item(dtype=None),
        {"dtype": "F32", "shape": [2]},
        {**item(), "extra": 1},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]},
        [],
        None,
    ],
)
def test_entries_that_contradict_themselves_name_the_tensor(wrong: Any, tmp_path: Path) -> None:
    assert "'a'" in refused(tmp_path / "x.safetensors", {"a": wrong})


def test_overlap_gap_trailing_bytes_and_truncation(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    two = {"a": item(), "b": item(begin=8, end=16)}
    assert "overlaps" in refused(path, {"a": item(), "b": item(begin=4, end=12)}, bytes(12))
    assert "overlaps" in refused(path, {"a": item(), "b": item()})
    assert "gap" in refused(path, {"a": item(begin=8, end=16)}, bytes(16))
    assert "gap" in refused(path, {"a": item(), "b": item(begin=12, end=20)}, bytes(20))
    assert "after its last tensor" in refused(path, two, bytes(17))
    assert "truncated" in refused(path, two, bytes(15))
    assert "truncated" in refused(path, two, b"")


def test_a_bloated_header_is_refused_before_it_is_believed(tmp_path: Path) -> None:
    many = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    assert "100000 tensors" in refused(tmp_path / "many.safetensors", many, b"")
    huge = b'{"__metadata__": {"x": "' + b"y" * 2**24 + b'"}}'
    refused(tmp_path / "huge.safetensors", huge, b"")


@pytest.mark.parametrize("metadata", [[], "text", {"a": 1}, {"a": {"b": "c"}}])
def test_metadata_that_is_no_table_of_strings(metadata: Any, tmp_path: Path) -> None:
    assert "__metadata__" in refused(tmp_path / "x.safetensors", {"__metadata__": metadata, "a": item()})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_damage_is_refused_or_harmless(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": item(), "b": item("U8", [3], 8, 11)}, bytes(11))
    raw = bytearray(path.read_bytes())
    for at, byte in changes:
        raw[at % len(raw)] = byte
    path.write_bytes(raw)
    try:
        file = open_safetensors(path)
    except CheckpointError:
        return
    for name in file.tensors:
        assert file.load(name).numel() <= 11


# Shards


def sharded(folder: Path, **weight_map: Any) -> Path:
    save_file({"a": torch.ones(2)}, folder / "first.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "second.safetensors")
    (folder / "config.json").write_text("{}")
    content = {
        "metadata": {},
        "weight_map": {"a": "first.safetensors", "b": "second.safetensors", **weight_map},
    }
    (folder / INDEX).write_text(json.dumps(content))
    return folder


def test_the_index_says_where_tensors_are_whatever_the_files_are_called(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"a": torch.full((2,), 9.0)}, tmp_path / "model-00001-of-00002.safetensors")  # not in the index
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.load("a").tolist() == [1.0, 1.0]
        assert checkpoint.load("b").tolist() == [0.0] * 3
        assert checkpoint.names() == ["a", "b"]
        assert checkpoint.file_of("b").endswith("second.safetensors")


@pytest.mark.parametrize(
    "file",
    [
        "../first.safetensors",
        "/etc/first.safetensors",
        "sub/first.safetensors",
        "sub\\first.safetensors",
        "C:first.safetensors",
        "..",
        ".",
        "",
        "first.safetensors\0",
        "first.bin",
        "pytorch_model-00001-of-00002.bin",
        None,
        3,
        ["first.safetensors"],
    ],
)
def test_an_index_that_leaves_the_folder_or_the_format(file: Any, tmp_path: Path) -> None:
    sharded(tmp_path, a=file)
    (tmp_path / "first.bin").write_bytes(b"\x80\x02.")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="'a'") as caught:
        checkpoint.names()
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "second.safetensors").unlink()
    with (
        open_checkpoint(tmp_path) as checkpoint,
        pytest.raises(CheckpointError, match=r"second\.safetensors"),
    ):
        checkpoint.names()


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path = sharded(tmp_path) / "second.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"second.*truncated"):
        checkpoint.names()


def test_a_tensor_that_is_not_where_the_index_says(tmp_path: Path) -> None:
    sharded(tmp_path, b="first.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"first.*'b'"):
        checkpoint.names()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 1}']
)
def test_an_index_without_a_map(content: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match="index"):
        shard_files(tmp_path)


# Writing


def test_shards_hold_what_was_given_and_the_index_says_where(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    save_shards(tmp_path, tensors, 1000, {"format": "pt"})
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 2000}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
        assert (tmp_path / file).stat().st_size < 1400
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path) as checkpoint:
        assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in tensors.items())


def test_a_tensor_over_the_limit_gets_a_shard_of_its_own(tmp_path: Path) -> None:
    save_shards(tmp_path, {"a": torch.ones(1), "b": torch.ones(100), "c": torch.ones(1)}, 8, {})
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_saving_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    (tmp_path / "model-of-mine.safetensors").write_bytes(b"not a shard of ours")
    big, small = {f"t{i}": torch.ones(100) for i in range(5)}, {"t": torch.zeros(2)}
    for tensors, limit in ((big, 1000), (small, 1000), (big, 400), (small, 1000)):
        save_shards(tmp_path, tensors, limit, {"format": "pt"})
        found = {
            name for path in tmp_path.glob("model*s") if "mine" not in path.name for name in load_file(path)
        }
        assert found == set(tensors)
        assert (tmp_path / INDEX).exists() == (len(tensors) > 1)
        assert set(shard_files(tmp_path)) == set(tensors)
    assert (tmp_path / "model-of-mine.safetensors").exists()
    assert not list(tmp_path.glob(".*")), "no parts are left"


def test_a_model_can_be_saved_over_the_file_that_it_maps(tmp_path: Path) -> None:
    save_shards(tmp_path, {"a": torch.arange(1000.0)}, 10**9, {"format": "pt"})
    mapped = open_safetensors(tmp_path / "model.safetensors").load("a")
    save_shards(tmp_path, {"a": mapped + 1}, 10**9, {"format": "pt"})
    assert torch.equal(mapped, torch.arange(1000.0))
    assert load_file(tmp_path / "model.safetensors")["a"][0] == 1


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_shards(tmp_path, {"a": torch.ones(3)}, 10**9, {})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smollm3.checkpoint.safetensors._write_tensors", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_shards(tmp_path, {"a": torch.zeros(3)}, 10**9, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert open_safetensors(tmp_path / "model.safetensors").load("a").tolist() == [1.0] * 3


def test_tensors_of_whole_lines_lie_aligned_and_others_to_their_items(tmp_path: Path) -> None:
    tensors = {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "long": torch.arange(5),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
        "panels": torch.randint(0, 256, (3, 64), dtype=torch.uint8),
        "none": torch.empty(0, 4),
        "norm": torch.ones(32, dtype=torch.bfloat16),
        "turned": torch.arange(48.0).reshape(6, 8).t(),
        "naïve": torch.tensor([True, False]),
    }
    save_shards(tmp_path, tensors, 10**9, {"format": "pt"})
    read, opened = load_file(tmp_path / "model.safetensors"), open_safetensors(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert torch.equal(opened.load(name), tensor)
        assert opened.tensors[name].begin % (64 if tensor.nbytes % 64 == 0 else tensor.itemsize) == 0


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_shards(tmp_path, {"a": torch.ones(3)}, 10**9, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o644
