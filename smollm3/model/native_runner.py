"""Runs a SmolLM3 on the native CPU engine, behind the same runner interface as the torch path.

In: a causal language model on the CPU whose linear layers are bf16 (used in place) or packed. `refusal` says
in one sentence why a model cannot run there. Knows no sampling and no text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smollm3.engine.runner import CacheFullError, Row
from smollm3.errors import DeviceError, ParameterError
from smollm3.model.module import SmolLM3RMSNorm, SmolLM3RotaryEmbedding
from smollm3.model.native_description import architecture_of, weights_of
from smollm3.model.smollm3 import (
    SmolLM3Attention,
    SmolLM3DecoderLayer,
    SmolLM3ForCausalLM,
    SmolLM3MLP,
    SmolLM3Model,
)
from smollm3.native.blocks import BlockTables
from smollm3.native.library import ISA_NAMES, native_status
from smollm3.native.network import Network, StepRow
from smollm3.native.settling import Settler
from smollm3.quantization.bitsandbytes_linear import Linear4bit
from smollm3.quantization.packed import PackedEmbedding, PackedLinear

RESERVED_SEQUENCES = 64  # full contexts of address space; memory is taken only as a cache fills
PREFILL_CHUNK = 512  # ids of one native call: bounds its scratch memory

# What the engine computes as torch would; anything else in a model (an adapter, a subclass) is torch's.
_KNOWN = {
    *(SmolLM3ForCausalLM, SmolLM3Model, SmolLM3DecoderLayer, SmolLM3Attention, SmolLM3MLP),
    *(SmolLM3RMSNorm, SmolLM3RotaryEmbedding, nn.ModuleList),
    *(nn.Linear, nn.Embedding, PackedLinear, PackedEmbedding, Linear4bit),
}


def refusal(model: nn.Module) -> str | None:
    """Return why the native engine cannot run `model`, or None when it can."""
    status = native_status()
    if not status.available:
        return f"the native library is absent: {status.reason}"
    if not isinstance(model, SmolLM3ForCausalLM):
        return f"{type(model).__name__} is not a causal language model"
    return _config_refusal(model) or _weights_refusal(model)


def _config_refusal(model: SmolLM3ForCausalLM) -> str | None:
    config = model.config
    rope_type = (config.rope_parameters or {}).get("rope_type")
    if config.hidden_act not in ("silu", "swish"):
        return f"hidden_act {config.hidden_act!r} is not silu"
    if rope_type == "dynamic":
        return "dynamic RoPE changes its angles with the length"
    if (config.head_dim or 0) % 16:
        return f"head_dim {config.head_dim} does not divide by 16"
    sizes = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * (config.head_dim or 0),
    )
    if any(size % 32 for size in sizes):
        return f"sizes {sizes} do not all divide by 32"
    return None


def _weights_refusal(model: SmolLM3ForCausalLM) -> str | None:
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit) and (reason := module.native_refusal()) is not None:
            return f"{name} is a {type(module).__name__} and {reason}"
        if type(module) not in _KNOWN:
            return f"{name or 'the model'} is a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has forward hooks, which only torch calls"
        if type(module) in (nn.Linear, nn.Embedding):
            weight = module.weight
            if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
                dtype = str(weight.dtype).removeprefix("torch.")
                return f"{name} is {dtype} on {weight.device}, not bfloat16 on cpu"
    return None


class NativeRunner:
    """An engine.Runner over the native library; block tables make sequences share a prompt's cache."""

    BLOCK_SIZE = 64  # positions

    def __init__(
        self,
        model: SmolLM3ForCausalLM,
        *,
        threads: int | None = None,
        isa: str | None = None,
        kv_bits: int = 16,
        max_cache_tokens: int | None = None,
        max_cache_bytes: int | None = None,
    ) -> None:
        """Describe `model` to the library; its weights are used in place and kept alive.

        `kv_bits` is 16 (bf16) or 8; `isa` forces an instruction set; `max_cache_tokens` and `max_cache_bytes`
        bound the KV cache (the smaller wins). Within the bound it keeps the pasts of closed slots for reuse.
        """
        reason = refusal(model)
        if reason is not None:
            raise DeviceError(f"the native engine cannot run this model: {reason}")
        self._context_size = model.config.max_position_embeddings
        tokens = max_cache_tokens or RESERVED_SEQUENCES * self._context_size
        num_blocks = -(-tokens // self.BLOCK_SIZE)
        if max_cache_bytes is not None:
            block_bytes = _block_bytes(model, kv_bits)
            if max_cache_bytes < block_bytes:
                raise ParameterError(
                    f"max_cache_bytes={max_cache_bytes}: one block of the KV cache takes {block_bytes}"
                )
            most = max_cache_bytes // block_bytes
            num_blocks = most if max_cache_tokens is None else min(num_blocks, most)
        self.network = Network(
            architecture_of(model),
            weights_of(model),
            threads=threads or torch.get_num_threads(),
            isa=_isa_index(isa),
            kv_bits=kv_bits,
            num_blocks=num_blocks,
        )
        assert self.network.block_size == self.BLOCK_SIZE
        assert self.network.block_bytes == _block_bytes(model, kv_bits)
        self.kv_bits = kv_bits
        self._blocks = BlockTables(num_blocks, self.BLOCK_SIZE)

    def settle(self) -> Settler:
        """Move packed weights from a mapped file into huge pages while idle: for a runner that lives long."""
        return Settler(self.network)

    @property
    def context_size(self) -> int:
        return self._context_size

    @property
    def vocab_size(self) -> int:
        return self.network.vocab_size

    def open(self, capacity: int) -> int:
        return self._blocks.open()

    def fork(self, slot: int) -> int:
        try:
            child, copy = self._blocks.fork(slot)
        except MemoryError as error:
            raise CacheFullError(str(error)) from None
        self._copy(copy)
        return child

    def reuse(self, slot: int, token_ids: Sequence[int], salt: str = "") -> int:
        num, copy = self._blocks.reuse(slot, token_ids, salt)
        self._copy(copy)
        return num

    def close(self, slot: int, token_ids: Sequence[int] = (), salt: str = "") -> None:
        self._blocks.close(slot, len(token_ids), salt)

    @property
    def num_open(self) -> int:
        return self._blocks.num_open

    @property
    def cache_tokens_used(self) -> int:
        return (self._blocks.num_blocks - self._blocks.num_free) * self.BLOCK_SIZE

    @property
    def cache_tokens_total(self) -> int:
        return self._blocks.num_blocks * self.BLOCK_SIZE

    def fits(self, rows: Sequence[Row]) -> bool:
        needed = (self._blocks.num_needed(row.slot, row.start, len(row.token_ids)) for row in rows)
        return sum(needed) <= self._blocks.num_free

    def export_past(self, slot: int, num_ids: int) -> dict[str, NDArray[Any]]:
        """Return the KV cache of a slot's first `num_ids` ids: {"blocks": bytes [blocks, block_bytes]}."""
        num_blocks = -(-num_ids // self.BLOCK_SIZE)
        return {"blocks": np.stack([self.network.block(b) for b in self._blocks.table(slot)[:num_blocks]])}

    def import_past(
        self, token_ids: Sequence[int], arrays: Mapping[str, NDArray[Any]], salt: str = ""
    ) -> None:
        """Let `reuse` find what `export_past` gave for exactly these ids, on the same model and settings.

        Raises ParameterError where the arrays have another shape, CacheFullError where there is no room.
        """
        blocks = arrays.get("blocks")
        shape = (-(-len(token_ids) // self.BLOCK_SIZE), self.network.block_bytes)
        if blocks is None or blocks.shape != shape or blocks.dtype != np.uint8:
            found = "missing" if blocks is None else f"{blocks.dtype} {blocks.shape}"
            raise ParameterError(
                f"the saved past of {len(token_ids)} ids is {found}, this model's is uint8 {shape}: "
                "save it anew with this model and these settings"
            )
        slot = self.open(len(token_ids))
        try:
            num = self.reuse(slot, token_ids, salt)
            if not self.fits([Row(slot, token_ids[num:], num)]):
                raise CacheFullError(f"the KV cache has no room for a saved past of {len(token_ids)} ids")
            self._copy(self._blocks.extend(slot, num, token_ids[num:]))
            for idx in range(num // self.BLOCK_SIZE, len(blocks)):
                self.network.block(self._blocks.table(slot)[idx])[:] = blocks[idx]
        except BaseException:
            self.close(slot)
            raise
        self.close(slot, token_ids, salt)

    def _copy(self, copy: tuple[int, int] | None) -> None:
        if copy is not None:
            self.network.copy_block(*copy)

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Return fp32 logits [sum of num_logits, V]; long prompts go in chunks, which changes no bit."""
        for row in rows:
            self._copy(self._blocks.extend(row.slot, row.start, row.token_ids))
        logits = np.empty((sum(row.num_logits for row in rows), self.vocab_size), np.float32)
        done = 0  # pieces come in the order of the rows, and so do their logits
        for step in _chunks(rows):
            end = done + sum(piece.num_logits for piece in step)
            self.network.forward([self._step_row(piece) for piece in step], logits[done:end])
            done = end
        for row in rows:
            if row.num_logits < 2:  # else its last ids may be guesses
                self._blocks.settle(row.slot)
        return torch.from_numpy(logits)

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """Return fp32 hidden states after the final norm [all ids, N]; no logits are computed."""
        for row in rows:
            self._copy(self._blocks.extend(row.slot, row.start, row.token_ids))
        rows = [replace(row, num_logits=0) for row in rows]
        parts = [self.network.hidden([self._step_row(piece) for piece in step]) for step in _chunks(rows)]
        return torch.from_numpy(np.concatenate(parts))

    def _step_row(self, row: Row) -> StepRow:
        return StepRow(row.token_ids, row.start, self._blocks.table(row.slot), row.num_logits)


def _block_bytes(model: SmolLM3ForCausalLM, kv_bits: int) -> int:
    config, size = model.config, NativeRunner.BLOCK_SIZE
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    per_head = 2 * size * config.head_dim * kv_bits // 8 + (2 * size * 4 if kv_bits == 8 else 0)
    return per_head * config.num_key_value_heads * config.num_hidden_layers


def _chunks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Cut the rows into steps of at most PREFILL_CHUNK ids; a row's pieces stay in order."""
    step: list[Row] = []
    room = PREFILL_CHUNK
    for row in rows:
        done, num = 0, len(row.token_ids)
        while done < num:
            take = min(room, num - done)
            wanted = max(0, done + take - max(done, num - row.num_logits))
            step.append(Row(row.slot, row.token_ids[done : done + take], row.start + done, wanted))
            done, room = done + take, room - take
            if not room:
                yield step
                step, room = [], PREFILL_CHUNK
    if step:
        yield step


def _isa_index(isa: str | None) -> int:
    usable = native_status().isas
    if isa is None:
        isa = usable[-1]
    if isa not in usable:
        raise ParameterError(f"isa={isa!r} is not usable here: choose one of {', '.join(usable)}")
    return ISA_NAMES.index(isa)
