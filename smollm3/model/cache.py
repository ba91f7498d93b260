"""Keys and values of the tokens already seen: passed into a forward pass, never kept by a layer.

In: new keys and values [B, K, T, D] of a layer. Out: all of them, in order. Knows neither positions nor
masks.
Shapes: B batch, K kv heads, T new tokens, S cached and new tokens, D head dim.
"""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from smollm3.errors import ContextOverflowError, ParameterError

if TYPE_CHECKING:
    from smollm3.model.config import SmolLM3Config

BLOCK = 256  # tokens by which a growing cache rounds up


class Cache(Protocol):
    """What a forward pass asks of a cache."""

    def update(self, k: Tensor, v: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append k and v [B, K, T, D] to a layer; return all its keys and values [B, K, S, D]."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens a layer has seen."""


class DynamicCache:
    """Grows with the sequence: room is doubled, so a token is written once and hardly ever copied."""

    max_cache_len: int | None = None

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lengths: list[int] = []

    def update(self, k: Tensor, v: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append to a layer; return views of everything it holds."""
        while len(self._keys) <= layer_idx:
            self._keys.append(k[:, :, :0])
            self._values.append(v[:, :, :0])
            self._lengths.append(0)
        length = self._lengths[layer_idx]
        total = length + k.shape[2]
        self._check_batch(k, layer_idx)
        if torch.is_grad_enabled() and (k.requires_grad or self._keys[layer_idx].requires_grad):
            # Writing in place would break the backward pass of earlier tokens.
            self._keys[layer_idx] = torch.cat((self._keys[layer_idx][:, :, :length], k), dim=2)
            self._values[layer_idx] = torch.cat((self._values[layer_idx][:, :, :length], v), dim=2)
        else:
            if total > self._keys[layer_idx].shape[2] or _frozen(self._keys[layer_idx]):
                room = -(-max(total, 2 * length) // BLOCK) * BLOCK
                self._keys[layer_idx] = _grown(self._keys[layer_idx], length, room)
                self._values[layer_idx] = _grown(self._values[layer_idx], length, room)
            self._keys[layer_idx][:, :, length:total] = k
            self._values[layer_idx][:, :, length:total] = v
        self._lengths[layer_idx] = total
        return self._keys[layer_idx][:, :, :total], self._values[layer_idx][:, :, :total]

    def _check_batch(self, k: Tensor, layer_idx: int) -> None:
        if k.shape[0] != self._keys[layer_idx].shape[0]:
            raise ParameterError(
                f"the cache holds {self._keys[layer_idx].shape[0]} rows and the input has {k.shape[0]}: "
                "use one cache per batch, or reorder it"
            )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens a layer holds."""
        return self._lengths[layer_idx] if layer_idx < len(self._lengths) else 0

    def crop(self, length: int) -> None:
        """Forget the tokens after the first `length`; a negative `length` forgets that many from the end."""
        for idx, held in enumerate(self._lengths):
            self._lengths[idx] = min(held, length) if length >= 0 else max(held + length, 0)

    def reorder(self, rows: Tensor) -> None:
        """Keep, repeat or permute the batch rows: row i becomes the old row rows[i]."""
        for part in (self._keys, self._values):
            for idx, tensor in enumerate(part):
                part[idx] = tensor.index_select(0, rows.to(tensor.device))

    def __len__(self) -> int:
        return len(self._keys)


def _frozen(tensor: Tensor) -> bool:
    """Whether a tensor from inference mode would have to be written outside of it, which PyTorch refuses."""
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


def _grown(old: Tensor, length: int, room: int) -> Tensor:
    B, K, _, D = old.shape
    new = old.new_empty(B, K, room, D)
    new[:, :, :length] = old[:, :, :length]
    return new


class StaticCache:
    """Room for `max_cache_len` tokens from the start: shapes never change, so a compiled step is reused."""

    def __init__(
        self,
        config: "SmolLM3Config",
        max_cache_len: int,
        batch_size: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if max_cache_len < 1 or batch_size < 1:
            raise ParameterError(
                f"a cache needs room: max_cache_len={max_cache_len}, batch_size={batch_size}"
            )
        assert config.num_key_value_heads is not None
        assert config.head_dim is not None
        shape = (batch_size, config.num_key_value_heads, max_cache_len, config.head_dim)
        indices = range(config.num_hidden_layers)
        self.max_cache_len = max_cache_len
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in indices]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in indices]
        self._lengths = [0 for _ in indices]

    def update(self, k: Tensor, v: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append to a layer; return all its room [B, K, max_cache_len, D], of which the end is unused."""
        length = self._lengths[layer_idx]
        total = length + k.shape[2]
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if total > self.max_cache_len:
            raise ContextOverflowError(
                f"the cache has room for {self.max_cache_len} tokens and {total} are asked for: build it "
                "with a larger max_cache_len"
            )
        if k.shape[0] != keys.shape[0]:
            raise ParameterError(f"the cache holds {keys.shape[0]} rows and the input has {k.shape[0]}")
        if torch.is_grad_enabled() and k.requires_grad:
            raise ParameterError(
                "a StaticCache is written in place and cannot be trained through: use DynamicCache"
            )
        keys[:, :, length:total] = k
        values[:, :, length:total] = v
        self._lengths[layer_idx] = total
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens a layer holds."""
        return self._lengths[layer_idx]

    def crop(self, length: int) -> None:
        """Forget the tokens after the first `length`; a negative `length` forgets that many from the end."""
        for idx, held in enumerate(self._lengths):
            self._lengths[idx] = min(held, length) if length >= 0 else max(held + length, 0)

    def reorder(self, rows: Tensor) -> None:
        """Permute the batch rows in place: row i becomes the old row rows[i]; the number of rows stays."""
        if rows.shape[0] != self._keys[0].shape[0]:
            raise ParameterError(
                f"a StaticCache of {self._keys[0].shape[0]} rows cannot become {rows.shape[0]} rows"
            )
        for tensor in (*self._keys, *self._values):
            tensor.copy_(tensor.index_select(0, rows.to(tensor.device)))

    def reset(self) -> None:
        """Forget everything; the room stays."""
        self.crop(0)

    def __len__(self) -> int:
        return len(self._keys)
