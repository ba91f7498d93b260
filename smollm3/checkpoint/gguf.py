"""GGUF files of SmolLM3- and Llama-shaped models: their config, tokenizer metadata and weights in HF's terms.

Names become HF's, q and k rows get HF's order back, quantized blocks become floats through the gguf library.
Knows no nn.Module.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from smollm3.checkpoint.gguf_config import architecture_of, config_dict, head_counts
from smollm3.checkpoint.gguf_header import GGUFHeader, GGUFTensor, read_header
from smollm3.checkpoint.mapped_file import MappedFile
from smollm3.errors import CheckpointError

_FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_QUANTIZED = {
    getattr(GGMLQuantizationType, name)
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
}
_KEPT = {getattr(GGMLQuantizationType, name) for name in ("Q4_0", "Q4_1", "Q8_0")}
_CHUNK = 2**18  # weights dequantized at a time: their floats stay in the processor's cache
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"


def read_metadata(path: Path) -> Mapping[str, Any]:
    """Return a GGUF file's metadata: keys to Python values."""
    return read_header(path).metadata


class GGUFCheckpoint:
    """A GGUF file as a checkpoint; see `source.Checkpoint`."""

    generation_config: dict[str, Any] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: GGUFHeader = read_header(path)
        architecture_of(self.header)  # refuses models of another kind before their tensors' names confuse
        self._tensors = self._rename()
        self._pages = MappedFile(path, path.stat().st_size)
        self._keeps_blocks = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; tensors that were loaded stay."""
        self._pages.close()

    def keep_blocks(self) -> bool:
        """Let `load` give matrices in Q4_0, Q4_1 and Q8_0 as they are: blocks, uint8 [rows, bytes]."""
        self._keeps_blocks = True
        return True

    def _row_bytes(self, tensor: GGUFTensor) -> int | None:
        """The bytes of a row of a matrix that stays in its blocks, None for one that becomes floats."""
        if not self._keeps_blocks or tensor.type not in _KEPT or len(tensor.shape) != 2:
            return None
        block_size, block_bytes = GGML_QUANT_SIZES[tensor.type]
        return tensor.shape[1] // block_size * block_bytes

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json that the metadata amounts to."""
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is None or len(embedding[1].shape) != 2:
            raise CheckpointError(f"{self.path} has no matrix token_embd.weight: it is no language model")
        factors = self.header.tensors.get(ROPE_FACTORS)
        values = None if factors is None else self._floats(factors, torch.float32).numpy()
        return config_dict(self.header, self._tensors, embedding[1].shape[0], values)

    @property
    def tokenizer_metadata(self) -> Mapping[str, Any]:
        """What `text.tokenizer.Tokenizer.from_gguf` reads."""
        return self.header.metadata

    @property
    def stored_dtype(self) -> torch.dtype:
        """What "auto" stands for: the float type of the matrices, bfloat16 where any of them is quantized."""
        types = {tensor.type for _, tensor in self._tensors.values() if len(tensor.shape) > 1}
        return _FLOATS.get(types.pop(), torch.bfloat16) if len(types) == 1 else torch.bfloat16

    def names(self) -> list[str]:
        """Return the tensors' HF names."""
        return list(self._tensors)

    def tensor_info(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return a tensor's shape and the dtype in which `load` gives it."""
        tensor = self._tensors[name][1]
        if (row_bytes := self._row_bytes(tensor)) is not None:
            return (tensor.shape[0], row_bytes), torch.uint8
        return tensor.shape, _FLOATS.get(tensor.type, torch.float32)

    def file_of(self, name: str) -> str:
        """Return the file and the name in it, for messages."""
        return f"{self.path} ({self._tensors[name][0]})"

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor by its HF name: F32, F16, BF16 as stored, quantized ones in `dtype` or float32."""
        _, tensor = self._tensors[name]
        if (row_bytes := self._row_bytes(tensor)) is not None:
            shape = (tensor.shape[0], row_bytes)
            loaded = self._pages.view(tensor.begin, tensor.end, torch.uint8, shape)
        else:
            loaded = self._floats(tensor, dtype or torch.float32)
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj"):
            return _unpermute(loaded, head_counts(self.header)[kind == "k_proj"])
        return loaded

    def _floats(self, tensor: GGUFTensor, dtype: torch.dtype) -> Tensor:
        if tensor.type in _FLOATS:
            return self._pages.view(tensor.begin, tensor.end, _FLOATS[tensor.type], tensor.shape)
        size = tensor.end - tensor.begin
        raw = self._pages.view(tensor.begin, tensor.end, torch.uint8, (size,)).numpy()
        block_size, block_bytes = GGML_QUANT_SIZES[tensor.type]
        floats = torch.empty(size // block_bytes * block_size, dtype=dtype)
        step = _CHUNK // block_size
        for block in range(0, size // block_bytes, step):
            codes = raw[block * block_bytes : (block + step) * block_bytes]
            # Blocks know nothing of rows: as one long row, a chunk is dequantized in one go.
            values: np.ndarray[Any, Any] = dequantize(codes.reshape(1, -1), tensor.type)
            floats[block * block_size : block * block_size + values.size] = torch.from_numpy(
                values.reshape(-1)
            )
        return floats.view(tensor.shape)

    def _rename(self) -> dict[str, tuple[str, GGUFTensor]]:
        renamed: dict[str, tuple[str, GGUFTensor]] = {}
        for name, tensor in self.header.tensors.items():
            if name == ROPE_FACTORS:
                continue
            hf_name = _hf_name(name)
            if hf_name is None:
                raise CheckpointError(
                    f"{self.path} holds a tensor {name!r} that belongs to no SmolLM3 or Llama model"
                )
            if tensor.type not in _FLOATS and tensor.type not in _QUANTIZED:
                raise CheckpointError(
                    f"{self.path}: the tensor {name!r} is {tensor.type.name}, which cannot be read: use a "
                    "Q4_K, Q6_K, Q8_0 or BF16 file"
                )
            renamed[hf_name] = (name, tensor)
        return renamed


def _hf_name(name: str) -> str | None:
    """Return HF's name of a GGUF tensor, None for a stranger."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in OUTER_NAMES:
        return f"{OUTER_NAMES[stem]}.{kind}"
    parts = stem.split(".")
    numbered = len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal()
    if numbered and parts[1] == str(int(parts[1])) and parts[2] in INNER_NAMES:
        return f"model.layers.{parts[1]}.{INNER_NAMES[parts[2]]}.{kind}"
    return None


def _unpermute(x: Tensor, num_heads: int) -> Tensor:
    """Bring the rows (pair, half) of each head back to (half, pair), as rotate-half wants them."""
    pairs = x.shape[0] // num_heads // 2
    if pairs * 2 * num_heads != x.shape[0]:
        return x  # not the shape that the config asks for: loading says so
    return x.reshape(num_heads, pairs, 2, -1).transpose(1, 2).reshape(x.shape).contiguous()
