"""GGUF headers that lie: every one is a CheckpointError of one line, at once and without memory."""

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf_files import ARRAY, FLOAT32, STRING, UINT32, UINT64, RawGGUF, entry, string, tensor, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_config, tiny_model

from smollm3.checkpoint.gguf_header import read_header
from smollm3.errors import CheckpointError
from smollm3.model.smollm3 import SmolLM3ForCausalLM

ARCHITECTURE = entry("general.architecture", STRING, string("llama"))
HUGE = 2**63 - 1


def array(item_type: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", item_type & 0xFFFFFFFF, count) + payload


def refused(raw: RawGGUF, path: Path) -> str:
    """The message with which a file is refused: one line that names it, quickly and in little memory."""
    raw.write(path)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    seconds, (_, peak) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert seconds < 2
    assert peak < 20 * 2**20
    return message


def test_a_good_file_is_read(tmp_path: Path) -> None:
    entries = [
        ARCHITECTURE,
        entry("a.count", UINT32, struct.pack("<I", 7)),
        entry("a.ratio", FLOAT32, struct.pack("<f", 0.5)),
        entry("a.words", ARRAY, array(STRING, 2, string("à") + string(""))),
        entry("a.nested", ARRAY, array(ARRAY, 1, array(UINT32, 2, struct.pack("<II", 1, 2)))),
    ]
    two = [tensor("x", (4, 2)), tensor("y", (32,), int(GGMLQuantizationType.Q8_0), 32)]
    header = read_header(RawGGUF(entries=entries, tensors=two, data=bytes(66)).write(tmp_path / "x.gguf"))
    assert header.metadata["a.count"] == 7
    assert header.metadata["a.ratio"] == 0.5
    assert header.metadata["a.words"] == ["à", ""]
    assert header.metadata["a.nested"] == [[1, 2]]
    assert header.tensors["x"].shape == (2, 4)
    assert header.tensors["y"].end - header.tensors["y"].begin == 34


# Counts, sizes and offsets near 2**63 (cases 14, 15, 16, 17)


@pytest.mark.parametrize("count", [2, 10**6, 2**32, HUGE, 2**64 - 1])
def test_more_tensors_or_keys_than_the_file_holds(count: int, tmp_path: Path) -> None:
    refused(RawGGUF(num_tensors=count), tmp_path / "tensors.gguf")
    refused(RawGGUF(num_entries=count), tmp_path / "keys.gguf")


@pytest.mark.parametrize(
    "dims",
    [
        (HUGE,),
        (2**32, 2**32),  # wraps to 0 in 64 bits
        (2**31, 2**31, 4),
        (2**62, 4),
        (2**33 + 4, 2**33 + 2),
        (2**16, 2**16, 2**16, 2**16),
    ],
)
@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.Q4_K])
def test_products_of_dims_are_not_wrapped(
    dims: tuple[int, ...], kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    refused(RawGGUF(tensors=[tensor("x", dims, int(kind))]), tmp_path / "x.gguf")


@pytest.mark.parametrize("offset", [32, 2**32, 2**63 - 32, 2**64 - 32])
def test_tensors_past_the_end(offset: int, tmp_path: Path) -> None:
    message = refused(RawGGUF(tensors=[tensor("x", (4, 2), 0, offset)]), tmp_path / "x.gguf")
    assert "'x'" in message


def test_an_offset_off_the_alignment(tmp_path: Path) -> None:
    raw = RawGGUF(tensors=[tensor("x", (4, 2), 0, 4)], data=bytes(64))
    assert "alignment" in refused(raw, tmp_path / "x.gguf")


def test_overlapping_tensors(tmp_path: Path) -> None:
    raw = RawGGUF(tensors=[tensor("x", (4, 4)), tensor("y", (4, 2), 0, 32)], data=bytes(128))
    assert "overlap" in refused(raw, tmp_path / "x.gguf")


@pytest.mark.parametrize("dims", [(), (0,), (4, 0), (1, 1, 1, 1, 1)])
def test_dims_that_are_none(dims: tuple[int, ...], tmp_path: Path) -> None:
    refused(RawGGUF(tensors=[tensor("x", dims)]), tmp_path / "x.gguf")


def test_a_number_of_dims_near_two_to_the_32(tmp_path: Path) -> None:
    lying = string("x") + struct.pack("<I", 2**32 - 1) + bytes(64)
    assert "dimensions" in refused(RawGGUF(tensors=[lying]), tmp_path / "x.gguf")


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    raw = RawGGUF(tensors=[tensor("x", (33, 2), int(GGMLQuantizationType.Q4_0))], data=bytes(256))
    assert "blocks of 32" in refused(raw, tmp_path / "x.gguf")


# Strings, arrays, types, alignment, duplicates (cases 18, 19)


@pytest.mark.parametrize("length", [10**9, 2**40, HUGE, 2**64 - 1])
def test_a_string_of_a_declared_gigabyte(length: int, tmp_path: Path) -> None:
    declared = struct.pack("<Q", length) + b"short"
    refused(RawGGUF(entries=[ARCHITECTURE, entry("a", STRING, declared)]), tmp_path / "value.gguf")
    refused(RawGGUF(entries=[declared]), tmp_path / "key.gguf")
    words = array(STRING, 2, string("fine") + declared)
    refused(RawGGUF(entries=[ARCHITECTURE, entry("a", ARRAY, words)]), tmp_path / "vocabulary.gguf")
    refused(RawGGUF(tensors=[declared + bytes(64)]), tmp_path / "tensor.gguf")


@pytest.mark.parametrize("item_type", [UINT32, UINT64, STRING, ARRAY])
@pytest.mark.parametrize("count", [10**6, 2**61, HUGE, 2**64 - 1])
def test_arrays_longer_than_the_file(item_type: int, count: int, tmp_path: Path) -> None:
    refused(RawGGUF(entries=[ARCHITECTURE, entry("a", ARRAY, array(item_type, count))]), tmp_path / "x.gguf")


def test_arrays_nested_without_end(tmp_path: Path) -> None:
    nested = array(UINT32, 0)
    for _ in range(10_000):
        nested = array(ARRAY, 1) + nested
    refused(RawGGUF(entries=[entry("a", ARRAY, nested)]), tmp_path / "x.gguf")


@pytest.mark.parametrize("type_", [-1, 13, 255, 2**31])
def test_unknown_and_negative_types(type_: int, tmp_path: Path) -> None:
    message = refused(RawGGUF(entries=[entry("a", type_, bytes(64))]), tmp_path / "value.gguf")
    assert str(type_ & 0xFFFFFFFF) in message
    refused(RawGGUF(entries=[entry("a", ARRAY, array(type_, 1, bytes(8)))]), tmp_path / "item.gguf")
    refused(RawGGUF(tensors=[tensor("x", (4, 2), type_ or -1)]), tmp_path / "tensor.gguf")


@pytest.mark.parametrize("alignment", [0, 3, 33, 48, 2**32 - 1])
def test_an_alignment_that_is_no_power_of_two(alignment: int, tmp_path: Path) -> None:
    key = entry("general.alignment", UINT32, struct.pack("<I", alignment))
    assert "alignment" in refused(RawGGUF(entries=[ARCHITECTURE, key]), tmp_path / "x.gguf")


def test_an_alignment_that_is_no_number_or_past_the_end(tmp_path: Path) -> None:
    text = entry("general.alignment", STRING, string("32"))
    refused(RawGGUF(entries=[ARCHITECTURE, text]), tmp_path / "text.gguf")
    far = entry("general.alignment", UINT64, struct.pack("<Q", 2**62))
    refused(RawGGUF(entries=[ARCHITECTURE, far]), tmp_path / "far.gguf")


def test_duplicate_keys_and_tensors(tmp_path: Path) -> None:
    assert "general.architecture" in refused(RawGGUF(entries=[ARCHITECTURE] * 2), tmp_path / "keys.gguf")
    twice = [tensor("x", (4, 2)), tensor("x", (4, 2), 0, 32)]
    assert "'x'" in refused(RawGGUF(tensors=twice, data=bytes(64)), tmp_path / "tensors.gguf")


@pytest.mark.parametrize("magic", [b"GGML", b"FUGG", b"PK\x03\x04", b"\x80\x02}q"])
def test_files_that_are_no_gguf(magic: bytes, tmp_path: Path) -> None:
    assert "no GGUF" in refused(RawGGUF(magic=magic), tmp_path / "x.gguf")


@pytest.mark.parametrize("version", [0, 1, 4, 3 << 24])
def test_versions_that_are_not_read(version: int, tmp_path: Path) -> None:
    assert "version" in refused(RawGGUF(version=version), tmp_path / "x.gguf")


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    with pytest.raises(CheckpointError, match="empty"):
        read_header(path)


def test_a_file_cut_off_anywhere(tmp_path: Path) -> None:
    model = tiny_model(
        SmolLM3ForCausalLM, num_hidden_layers=1, vocab_size=8, pad_token_id=None, eos_token_id=1
    )
    config = tiny_config(num_hidden_layers=1, vocab_size=8, pad_token_id=None, eos_token_id=1)
    whole = write_gguf(tmp_path / "whole.gguf", config, model.state_dict()).read_bytes()
    last = max(tensor.end for tensor in read_header(tmp_path / "whole.gguf").tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in [*range(1, 200), *range(200, 1500, 13), *range(1500, last, 311), last - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_header(cut)


GOOD = RawGGUF(
    entries=[
        ARCHITECTURE,
        entry("llama.block_count", UINT32, struct.pack("<I", 1)),
        entry("words", ARRAY, array(STRING, 3, string("a") + string("bc") + string("def"))),
    ],
    tensors=[tensor("token_embd.weight", (4, 2)), tensor("output_norm.weight", (4,), 0, 32)],
    data=bytes(64),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=8))
def test_random_damage_is_refused_or_harmless(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    path = GOOD.write(tmp_path / "x.gguf")
    raw = bytearray(path.read_bytes())
    for at, byte in changes:
        raw[at % len(raw)] = byte
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except CheckpointError:
        return
    assert all(0 <= tensor.begin <= tensor.end <= len(raw) for tensor in header.tensors.values())


def test_a_vocabulary_of_128k_pieces_is_read_in_half_a_second(tmp_path: Path) -> None:
    words = b"".join(string(f"piece{i}") for i in range(128_256))
    merges = b"".join(string(f"pi ece{i}") for i in range(280_147))
    kinds = np.ones(128_256, np.int32).tobytes()
    entries = [
        ARCHITECTURE,
        entry("tokens", ARRAY, array(STRING, 128_256, words)),
        entry("merges", ARRAY, array(STRING, 280_147, merges)),
        entry("kinds", ARRAY, array(5, 128_256, kinds)),
    ]
    path = RawGGUF(entries=entries).write(tmp_path / "x.gguf")
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        header = read_header(path)
        seconds.append(time.process_time() - begin)
    assert header.metadata["tokens"][-1] == "piece128255"
    assert len(header.metadata["merges"]) == 280_147
    assert min(seconds) < 0.5
