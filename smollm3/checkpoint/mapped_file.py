"""A file's bytes as tensors that share its pages: one private mapping per file for any number of tensors.

In: a path and byte ranges that were checked before. Out: torch tensors; writing to one never reaches the
file. Knows no format.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class MappedFile:
    """Maps a file at its first use; the mapping lives as long as a tensor that shares it."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._storage: Any = None

    def view(self, begin: int, end: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return the bytes [begin, end) as a tensor; only an unaligned one is a copy."""
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        if self._storage is None:
            self._storage = torch.UntypedStorage.from_file(str(self.path), shared=False, nbytes=self.size)
        flat = torch.empty(0, dtype=torch.uint8)
        flat.set_(self._storage, begin, (end - begin,), (1,))
        if begin % dtype.itemsize:
            flat = flat.clone()
        return flat.view(dtype).view(shape)

    def close(self) -> None:
        """Let go of the mapping; tensors that share it stay."""
        self._storage = None
