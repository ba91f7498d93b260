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

from smollm3.checkpoint.gguf import GGUFCheckpoint
from smollm3.checkpoint.safetensors import SafetensorsFile, open_safetensors, parse_json_object, shard_files
from smollm3.errors import CheckpointError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


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

    def names(self) -> list[str]: ...

    def tensor_info(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype without loading."""

    def file_of(self, name: str) -> str:
        """Return where a tensor lies, for messages."""

    def load(self, name: str) -> Tensor:
        """Return a tensor on the CPU; its memory may be the file's pages."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SafetensorsCheckpoint:
    """A folder of config.json and safetensors. Weights are looked for when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config = self._read_json("config.json") or {}
        if not self.config:
            raise CheckpointError(f"{folder} has no config.json: give a folder that holds a model")
        self.generation_config = self._read_json("generation_config.json")
        self._located: dict[str, tuple[SafetensorsFile, str]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the files go; tensors that were loaded stay."""
        self._located = None

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return parse_json_object(path.read_bytes(), path) if path.is_file() else None

    @property
    def _files(self) -> Mapping[str, tuple[SafetensorsFile, str]]:
        if self._located is None:
            refuse_pickles(self.path)
            by_name = shard_files(self.path)
            opened = {path: open_safetensors(path) for path in sorted(set(by_name.values()))}
            for name, path in by_name.items():
                if name not in opened[path].tensors:
                    raise CheckpointError(f"{path} does not hold {name!r}, which the index looks for there")
            self._located = {name: (opened[path], name) for name, path in by_name.items()}
        return self._located

    @property
    def stored_dtype(self) -> torch.dtype:
        for file, name in self._files.values():
            dtype = file.tensors[name].dtype
            if dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                return dtype
        raise CheckpointError(f"{self.path} holds no floating-point tensor")

    def names(self) -> list[str]:
        return sorted(self._files, key=lambda name: (str(self._files[name][0].path), self._begin(name)))

    def _begin(self, name: str) -> int:
        file, inner = self._files[name]
        return file.tensors[inner].begin

    def tensor_info(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        file, inner = self._files[name]
        return file.tensors[inner].shape, file.tensors[inner].dtype

    def file_of(self, name: str) -> str:
        return str(self._files[name][0].path)

    def load(self, name: str) -> Tensor:
        file, inner = self._files[name]
        return file.load(inner)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder or a .gguf file. Raises CheckpointError when it is neither, damaged or unsafe."""
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if not (path / "config.json").is_file():
            if len(ggufs) == 1:
                return GGUFCheckpoint(ggufs[0])
            if ggufs:
                raise CheckpointError(
                    f"{path} holds {len(ggufs)} GGUF files: give the path of one, as {ggufs[0]}"
                )
            refuse_pickles(path)
        return SafetensorsCheckpoint(path)
    if path.suffix == ".gguf":
        return GGUFCheckpoint(path)
    raise CheckpointError(
        f"{path} is neither a folder nor a .gguf file: give the folder that holds config.json"
    )


def refuse_pickles(folder: Path) -> None:
    """Raise when a folder has weights only as pickles, which run code when they are loaded."""
    if any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").is_file():
        return
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights only as {pickles[0]}, a pickle that can run code: refused; "
            "convert it to safetensors"
        )
