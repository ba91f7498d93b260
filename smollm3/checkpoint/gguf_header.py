"""The header of a GGUF file: metadata and the places of its tensors, each number checked against the file.

In: a path. Out: plain Python values. All arithmetic is on Python integers, so that no sum can wrap; nothing
is allocated for a count that the file could not hold. Knows no model.
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from smollm3.errors import CheckpointError

MAX_DIMS = 4
MAX_NESTING = 4
DEFAULT_ALIGNMENT = 32
_SCALARS: dict[int, str] = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor's type, its shape as torch writes it, and its bytes [begin, end) in the file."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class GGUFHeader:
    """What the header says, checked."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]


class _Cursor:
    """Reads little-endian values and never past the end."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}: the file is damaged or cut off; download it again")

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise self.fail(f"{size} bytes are declared at byte {self.at} of {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, format_: str) -> Any:
        return struct.unpack(format_, self.take(struct.calcsize(format_)))[0]

    def string(self) -> str:
        raw = bytes(self.take(self.number("<Q")))
        # Some published vocabularies hold pieces that are no UTF-8; a name or template never does.
        return raw.decode("utf-8", "replace")

    def value(self, type_: int, depth: int = 0) -> Any:
        if type_ in _SCALARS:
            return self.number(_SCALARS[type_])
        if type_ == GGUFValueType.STRING:
            return self.string()
        if type_ != GGUFValueType.ARRAY or depth >= MAX_NESTING:
            raise self.fail(f"a value has the unknown type {type_}")
        item_type, count = self.number("<I"), self.number("<Q")
        if item_type in _SCALARS:
            raw = self.take(count * struct.calcsize(_SCALARS[item_type]))
            return np.frombuffer(raw, np.dtype(_SCALARS[item_type])).tolist()
        if item_type == GGUFValueType.STRING:
            return self.strings(count)
        if count > len(self.data) - self.at:
            raise self.fail(f"an array declares {count} items")
        return [self.value(item_type, depth + 1) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """Read many strings; the loop is bare because vocabularies have 10^5 of them."""
        data, at, end = self.data, self.at, len(self.data)
        if count * 8 > end - at:
            raise self.fail(f"an array declares {count} strings")
        length_at: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            if at + 8 > end:
                raise self.fail("an array of strings runs past the end")
            length = length_at(data, at)[0]
            at += 8 + length
            if at > end:
                raise self.fail(f"a string declares {length} bytes")
            found.append(str(data[at - length : at], "utf-8", "replace"))
        self.at = at
        return found


def read_header(path: Path) -> GGUFHeader:
    """Read and check a GGUF file's header; CheckpointError says what is wrong with it."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            return _parse(_Cursor(path, view))
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as GGUF: {error}") from error


def _parse(cursor: _Cursor) -> GGUFHeader:
    if bytes(cursor.take(4)) != b"GGUF":
        raise CheckpointError(f"{cursor.path} is no GGUF file: it does not begin with 'GGUF'")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise CheckpointError(f"{cursor.path} has GGUF version {version}: versions 2 and 3 can be read")
    num_tensors, num_values = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.string()
        if key in metadata:
            raise cursor.fail(f"the key {key!r} stands twice")
        metadata[key] = cursor.value(cursor.number("<I"))
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r}, which is no power of two")
    declared = _tensor_entries(cursor, num_tensors)
    start = -(-cursor.at // alignment) * alignment
    tensors = {name: _place(cursor, name, *entry, start, alignment) for name, entry in declared.items()}
    _check_overlap(cursor, tensors)
    return GGUFHeader(cursor.path, metadata, tensors)


def _tensor_entries(cursor: _Cursor, count: int) -> dict[str, tuple[tuple[int, ...], int, int]]:
    entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.string()
        num_dims = cursor.number("<I")
        if num_dims > MAX_DIMS:
            raise cursor.fail(f"the tensor {name!r} declares {num_dims} dimensions")
        if name in entries:
            raise cursor.fail(f"the tensor {name!r} stands twice")
        dims = tuple(cursor.number("<Q") for _ in range(num_dims))
        entries[name] = (dims[::-1], cursor.number("<I"), cursor.number("<Q"))
    return entries


def _place(
    cursor: _Cursor, name: str, shape: tuple[int, ...], type_: int, offset: int, start: int, alignment: int
) -> GGUFTensor:
    try:
        kind = GGMLQuantizationType(type_)
    except ValueError:
        raise cursor.fail(f"the tensor {name!r} has the unknown type {type_}") from None
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % block_size or 0 in shape:
        raise cursor.fail(f"the tensor {name!r} of shape {shape} does not divide into blocks of {block_size}")
    begin = start + offset
    end = begin + prod(shape) // block_size * block_bytes
    if offset % alignment:
        raise cursor.fail(f"the tensor {name!r} stands at {offset}, off the alignment of {alignment}")
    if end > len(cursor.data):
        raise cursor.fail(f"the tensor {name!r} ends at byte {end} of {len(cursor.data)}")
    return GGUFTensor(kind, shape, begin, end)


def _check_overlap(cursor: _Cursor, tensors: Mapping[str, GGUFTensor]) -> None:
    last_end, last_name = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin < last_end:
            raise cursor.fail(f"the tensors {last_name!r} and {name!r} overlap")
        last_end, last_name = tensor.end, name
