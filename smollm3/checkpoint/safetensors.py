"""safetensors files: a header checked before anything is believed, tensors by memory map, shards by index.

In: a path. Out: named torch tensors that share the file's pages until they are written to. Knows no module.
The format: 8 bytes of header length, a JSON header of names to dtype, shape and byte range, then the bytes.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import torch
from torch import Tensor

from smollm3.checkpoint.mapped_file import MappedFile
from smollm3.errors import CheckpointError

# Far above any model of this kind (SmolLM3-3B: 326 tensors, 40 kB), far below what could exhaust a machine.
MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 50_000
MAX_DIMS = 8
ALIGNMENT = 64  # bytes, of the tensors in a file that is written
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: dtype, shape, and its byte range from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsFile:
    """One checked file."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    pages: MappedFile
    metadata: Mapping[str, str]

    def load(self, name: str) -> Tensor:
        """Return a tensor that shares the file's pages, privately: writing to it never reaches the file."""
        info = self.tensors[name]
        return self.pages.view(info.begin, info.end, info.dtype, info.shape)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Read and check a file's header; CheckpointError says what is wrong with it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{path} is truncated or no safetensors file: its header does not fit in it"
                )
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    header = _parse_json_object(raw, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has a header whose __metadata__ is no table of strings: it is damaged")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} declares {len(header)} tensors, more than {MAX_TENSORS}: refused")
    tensors = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_ranges(path, tensors, 8 + length, size)
    return SafetensorsFile(path, tensors, MappedFile(path, size), metadata)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that must be one JSON object of a reasonable size."""
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_HEADER_BYTES} bytes: refused")
        return _parse_json_object(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _parse_json_object(raw: bytes, path: Path) -> dict[str, Any]:
    """Parse bytes that must be one JSON object without NaN, Infinity or duplicate keys."""
    try:
        parsed = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds JSON that cannot be read: {error}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} holds a JSON {type(parsed).__name__} where an object belongs")
    return parsed


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: the header's entry of {name!r} is damaged")
    shape, offsets = entry["shape"], entry["data_offsets"]
    numbers = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    # Dimensions are capped before they are multiplied: long products of long numbers take forever.
    if not numbers or len(shape) > MAX_DIMS or not all(_is_count(value) for value in (*shape, *offsets)):
        raise CheckpointError(f"{path}: {name!r} has a shape or range that is no list of counts")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: {name!r} has the dtype {entry['dtype']!r}, which is not supported")
    dtype = DTYPES[entry["dtype"]]
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path}: {name!r} of shape {tuple(shape)} and dtype {entry['dtype']} does not fill its "
            f"{offsets[1] - offsets[0]} bytes"
        )
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _check_ranges(path: Path, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    """The tensors must fill the file: no overlap, no gap, nothing past the end or after the last."""
    expected = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != expected:
            problem = "overlaps another" if info.begin < expected else "leaves a gap before it"
            raise CheckpointError(f"{path}: {name!r} {problem}: the file is damaged")
        expected = info.end
    if expected != size:
        problem = "is truncated" if expected > size else "has bytes after its last tensor"
        raise CheckpointError(f"{path} {problem}: its header speaks of {expected} bytes and it has {size}")


def shard_files(folder: Path) -> dict[str, Path]:
    """Return each tensor's file: model.safetensors, or what the index says where the weights are in shards.

    Raises CheckpointError when a file that the index names is missing or not beside it.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return dict.fromkeys(open_safetensors(single).tensors, single)
    if not index.is_file():
        raise CheckpointError(
            f"{folder} holds no {SINGLE} and no {INDEX}: only safetensors and GGUF are loaded, pickles never"
        )
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: it cannot say which file holds which tensor")
    files = {name: folder / _checked_shard(index, name, file) for name, file in weight_map.items()}
    for path in sorted(set(files.values())):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: {index.name} names it; download the checkpoint again")
    return files


def _checked_shard(index: Path, tensor: str, file: Any) -> str:
    """Refuse every shard name that could leave the folder, under the rules of any system."""
    plain = isinstance(file, str) and PureWindowsPath(file).name == file and "\0" not in file
    if not plain or file in ("", ".", ".."):
        raise CheckpointError(f"{index} points {tensor!r} at {file!r}: shards must lie beside their index")
    if not file.endswith(".safetensors"):
        raise CheckpointError(f"{index} points {tensor!r} at {file!r}: only .safetensors files are read")
    return str(file)


def save_shards(
    folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int, metadata: Mapping[str, str]
) -> None:
    """Write tensors as model.safetensors, or as numbered shards and an index when they are over the limit.

    A file appears under its name only when it is whole; what an earlier save left beyond it is removed.
    """
    shards = _split(tensors, max_shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    weight_map: dict[str, str] = {}
    for file_name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / file_name, shard, metadata)
        weight_map |= dict.fromkeys(shard, file_name)
    index = folder / INDEX
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        part = folder / f".{INDEX}.part"
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        part.replace(index)
    else:
        index.unlink(missing_ok=True)
    for path in folder.iterdir():
        if _WEIGHT_FILE.fullmatch(path.name) and path.name not in names:
            path.unlink()


def write_safetensors(path: Path, shard: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one file of tensors; it appears under its name only when it is whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            _write_tensors(file, shard, metadata)
        part.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}; free space or choose a folder") from error
    finally:
        part.unlink(missing_ok=True)


def _write_tensors(file: BinaryIO, shard: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write header and tensors, those of whole lines first: they can be used in place, aligned, by map."""
    names = sorted(shard, key=lambda name: (shard[name].nbytes % ALIGNMENT > 0, -shard[name].itemsize))
    dtypes = {dtype: stored for stored, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name in names:
        tensor = shard[name]
        end = begin + tensor.nbytes
        header[name] = {
            "dtype": dtypes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    file.write(len(raw).to_bytes(8, "little") + raw)
    for name in names:
        flat = shard[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        file.write(flat.numpy().data)


def _split(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards
