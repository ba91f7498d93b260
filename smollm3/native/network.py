"""A whole model in the native library: packed matrices in, logits out, one call per step.

What comes in is arrays and numbers; the module knows no files, no torch and no model class. The KV cache is
paged: a step names the blocks of each of its sequences.
"""

import ctypes
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smollm3.native.library import CBatch, CLayer, CModel, last_error, load_library
from smollm3.native.matrix import Matrix

Array = NDArray[Any]
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Layer:
    """One decoder layer: its seven matrices with their biases, two norms, and how it attends."""

    matrices: tuple[Matrix, ...]  # in the order of PROJECTIONS
    biases: tuple[NDArray[np.float32] | None, ...]
    input_norm: NDArray[np.float32]
    post_norm: NDArray[np.float32]
    use_rope: bool
    window: int = 0  # positions that attend, itself included; 0: all


@dataclass(frozen=True)
class Architecture:
    """The numbers of a model that no matrix tells."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    inv_freq: NDArray[np.float32]  # [head_dim / 2]
    rope_scale: float = 1.0


@dataclass(frozen=True)
class Weights:
    """All weights of a causal language model."""

    embedding: Matrix
    layers: tuple[Layer, ...]
    final_norm: NDArray[np.float32]
    head: Matrix

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads."""
        return self.head.nbytes + sum(m.nbytes for layer in self.layers for m in layer.matrices)


@dataclass(frozen=True)
class StepRow:
    """One sequence's share of a step: new ids, the position of the first, and its block table."""

    token_ids: Sequence[int]
    start: int
    table: Sequence[int]
    num_logits: int = 1  # after how many of the last ids; 0 for all but the last piece of a prompt


def _pointer(array: Array) -> int:
    return int(array.ctypes.data)


class Network:
    """The native engine over one model. `num_blocks` bounds the KV cache; memory is taken as it fills."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        *,
        threads: int,
        isa: int,
        kv_bits: int,
        num_blocks: int,
    ) -> None:
        self._library = load_library()
        self._keep: list[object] = [architecture, weights]  # what the library points to
        self.vocab_size, self.hidden_size = weights.head.rows, weights.head.cols
        self.bytes_per_token = weights.bytes_per_token
        self.head_layout = weights.head.layout
        self.num_blocks = num_blocks
        self.block_size = int(self._library.sm3_block_size())
        model = self._describe(architecture, weights)
        engine = self._library.sm3_create(ctypes.byref(model), threads, isa, kv_bits, num_blocks)
        if not engine:
            raise ValueError(last_error(self._library))
        self._engine = engine
        self._last_step = time.monotonic()
        self.block_bytes = int(self._library.sm3_block_bytes(engine))
        weakref.finalize(self, self._library.sm3_destroy, engine)

    def _describe(self, architecture: Architecture, weights: Weights) -> CModel:
        layers = (CLayer * len(weights.layers))()
        for c, layer in zip(layers, weights.layers, strict=True):
            for name, matrix, bias in zip(PROJECTIONS, layer.matrices, layer.biases, strict=True):
                setattr(c, name, matrix.describe(bias))
            c.input_norm, c.post_norm = _pointer(layer.input_norm), _pointer(layer.post_norm)
            c.use_rope, c.window = int(layer.use_rope), layer.window
        first = weights.layers[0].matrices
        return CModel(
            hidden=self.hidden_size,
            intermediate=first[PROJECTIONS.index("gate")].rows,
            vocab=self.vocab_size,
            layers=len(weights.layers),
            heads=architecture.num_heads,
            kv_heads=architecture.num_kv_heads,
            head_dim=architecture.head_dim,
            norm_eps=architecture.norm_eps,
            rope_scale=architecture.rope_scale,
            inv_freq=_pointer(architecture.inv_freq),
            layer=layers,
            final_norm=_pointer(weights.final_norm),
            embedding=weights.embedding.describe(),
            head=weights.head.describe(),
        )

    def forward(self, rows: Sequence[StepRow], logits: NDArray[np.float32]) -> None:
        """Run one step; write the logits, float32 [sum of num_logits, vocab], rows in order."""
        self._run(rows, logits, None)

    def hidden(self, rows: Sequence[StepRow]) -> NDArray[np.float32]:
        """Run one step; return the hidden states after the final norm, float32 [all ids, hidden]."""
        hidden = np.empty((sum(len(row.token_ids) for row in rows), self.hidden_size), np.float32)
        self._run(rows, np.empty((0, self.vocab_size), np.float32), hidden)
        return hidden

    def _run(
        self, rows: Sequence[StepRow], logits: NDArray[np.float32], hidden: NDArray[np.float32] | None
    ) -> None:
        offsets = np.cumsum([0, *(len(row.token_ids) for row in rows)]).astype(np.int32)
        ids = np.fromiter((i for row in rows for i in row.token_ids), np.int32, int(offsets[-1]))
        starts = np.array([row.start for row in rows], np.int32)
        tables = np.zeros((len(rows), max(len(row.table) for row in rows)), np.int32)
        for i, row in enumerate(rows):
            tables[i, : len(row.table)] = row.table
        last = np.array(
            [
                at
                for row, end in zip(rows, offsets[1:], strict=True)
                for at in range(end - row.num_logits, end)
            ],
            np.int32,
        )
        assert logits.shape == (len(last), self.vocab_size)
        assert logits.flags.c_contiguous
        batch = CBatch(
            sequences=len(rows),
            max_blocks=tables.shape[1],
            token_ids=_pointer(ids),
            offsets=_pointer(offsets),
            starts=_pointer(starts),
            blocks=_pointer(tables),
            logit_rows=_pointer(last),
            num_logits=len(last),
            logits=_pointer(logits),
            hidden=None if hidden is None else _pointer(hidden),
        )
        if self._library.sm3_forward(self._engine, ctypes.byref(batch)):
            raise ValueError(last_error(self._library))

    def block(self, block: int) -> NDArray[np.uint8]:
        """Return the bytes of one KV block, to read and to write, [block_bytes]; valid while this lives."""
        address = self._library.sm3_block_data(self._engine, block)
        if not address:
            raise ValueError(f"there is no block {block}")
        data: NDArray[np.uint8] = np.ctypeslib.as_array(
            (ctypes.c_uint8 * self.block_bytes).from_address(address)
        )
        return data

    def copy_block(self, source: int, target: int) -> None:
        """Copy one KV block onto another, all layers."""
        if self._library.sm3_copy_block(self._engine, source, target):
            raise ValueError(last_error(self._library))

    @property
    def idle_seconds(self) -> float:
        """How long ago the last step began."""
        return time.monotonic() - self._last_step

    def settle(self, budget: int) -> int:
        """Move about `budget` bytes of packed weights from a file into huge pages; return what is left.

        Huge pages are read faster; a file's pages are there at once. Addresses and contents stay. Waits for a
        step that is running.
        """
        left = int(self._library.sm3_settle(self._engine, budget))
        if left < 0:
            raise MemoryError(last_error(self._library))
        return left
