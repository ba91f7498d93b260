"""A checkpoint of any format behind one face: configs as dicts, tensors by HF's names.

In: the path that `hub.resolve` gave. Out: named arrays. Refuses folders that hold nothing but pickles: no
code of a checkpoint is ever run. Knows no nn.Module.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from smollm3.checkpoint.safetensors import SafetensorsFile, open_safetensors, read_json_object, shard_files
from smollm3.errors import CheckpointError

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz"}
_OTHER_FORMATS = {
    ".onnx": "ONNX",
    ".msgpack": "Flax",
    ".h5": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".mlmodel": "Core ML",
    ".xml": "OpenVINO",
    ".ggml": "an old GGML format",
}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Checkpoint(Protocol):
    """Named tensors with the configs that belong to them."""

    path: Path

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def generation_config(self) -> dict[str, Any] | None: ...

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype that "auto" stands for."""

    def names(self) -> list[str]:
        """Return the tensors' names in the order in which they lie."""

    def tensor_info(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype without loading."""

    def file_of(self, name: str) -> str:
        """Return where a tensor lies, for messages."""

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor on the CPU; its memory may be the file's pages.

        `dtype` is for formats that compute their floats: it is the dtype to compute them in (None: float32).
        What is stored as floats comes as it is stored.
        """

    def keep_blocks(self) -> bool:
        """Let `load` give quantized matrices as their blocks; False where the format has none."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SafetensorsCheckpoint:
    """A folder of config.json and safetensors. Weights are looked for when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        config = self._read_json("config.json")
        if config is None:
            raise CheckpointError(_no_config(folder))
        self.config = config
        self.generation_config = self._read_json("generation_config.json")
        self._located: dict[str, SafetensorsFile] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the files go; tensors that were loaded stay."""
        for file in (self._located or {}).values():
            file.pages.close()
        self._located = None

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return read_json_object(path) if path.is_file() else None

    @property
    def _files(self) -> Mapping[str, SafetensorsFile]:
        if self._located is None:
            refuse_other_weights(self.path)
            by_name = shard_files(self.path)
            opened = {path: open_safetensors(path) for path in sorted(set(by_name.values()))}
            for name, path in by_name.items():
                if name not in opened[path].tensors:
                    raise CheckpointError(f"{path} does not hold {name!r}, which the index looks for there")
            self._located = {name: opened[path] for name, path in by_name.items()}
        return self._located

    @property
    def stored_dtype(self) -> torch.dtype:
        for name, file in self._files.items():
            if (dtype := file.tensors[name].dtype) in _FLOATS:
                return dtype
        raise CheckpointError(f"{self.path} holds no floating-point tensor: pass dtype")

    def names(self) -> list[str]:
        files = self._files
        return sorted(files, key=lambda name: (files[name].path, files[name].tensors[name].begin))

    def tensor_info(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        info = self._files[name].tensors[name]
        return info.shape, info.dtype

    def file_of(self, name: str) -> str:
        return str(self._files[name].path)

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self._files[name].load(name)

    def keep_blocks(self) -> bool:
        return False


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder or a GGUF file. Raises CheckpointError when it is neither, damaged or unsafe."""
    if path.is_dir():
        ggufs = [] if (path / "config.json").is_file() else sorted(path.glob("*.gguf"))
        if len(ggufs) > 1:
            raise CheckpointError(
                f"{path} holds {len(ggufs)} GGUF files: give the path of one, as {ggufs[0]}"
            )
        return _open_gguf(ggufs[0]) if ggufs else SafetensorsCheckpoint(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: give a folder with config.json, or a .gguf file")
    if path.suffix in _PICKLES:
        raise CheckpointError(f"{path} {_REFUSED_PICKLE}")
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is one file of a checkpoint: give its folder, {path.parent}")
    return _open_gguf(path)


def _open_gguf(path: Path) -> Checkpoint:
    from smollm3.checkpoint.gguf import GGUFCheckpoint  # its library is not needed for safetensors

    return GGUFCheckpoint(path)


_REFUSED_PICKLE = (
    "is a pickle, and loading one can run any code: refused; convert it to safetensors where you trust it"
)


def refuse_other_weights(folder: Path) -> None:
    """Raise CheckpointError when a folder's weights are all pickles or of a format that is not read."""
    suffixes = {path.suffix: path for path in sorted(folder.iterdir(), reverse=True)}
    if ".safetensors" in suffixes or (folder / "model.safetensors.index.json").is_file():
        return
    for suffix in sorted(suffixes.keys() & _PICKLES):
        raise CheckpointError(f"{suffixes[suffix]} {_REFUSED_PICKLE}")
    for suffix in sorted(suffixes.keys() & _OTHER_FORMATS.keys()):
        raise CheckpointError(
            f"{suffixes[suffix]} is {_OTHER_FORMATS[suffix]}: only safetensors and GGUF can be read"
        )
    if ".gguf" in suffixes:
        raise CheckpointError(
            f"{folder} holds no safetensors: give the path of its GGUF, {suffixes['.gguf']}"
        )


def _no_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return f"{folder} holds an adapter and not a model: merge it into its base model and save that"
    if any(folder.iterdir()):
        return f"{folder} has no config.json: give the folder that holds a model's config.json"
    return f"{folder} is empty: give a folder that holds a model"
