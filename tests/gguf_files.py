"""GGUF files for tests: written whole by the gguf library, or put together byte by byte to be wrong."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

UINT32, INT32, FLOAT32, STRING, ARRAY, UINT64 = 4, 5, 6, 8, 9, 10
_INNER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """The name that llama.cpp's converter gives a tensor."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_INNER[inner]}.{kind}"


def permute(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """What the converter does to the rows of q and k."""
    return x.reshape(num_heads, 2, x.shape[0] // num_heads // 2, -1).swapaxes(1, 2).reshape(x.shape)


def write_gguf(
    path: Path,
    config: Any,
    weights: Mapping[str, torch.Tensor],
    *,
    kind: str = "F32",
    architecture: str = "smollm3",
    extra_tensors: Mapping[str, np.ndarray] | None = None,
    **metadata: Any,
) -> Path:
    """Write a causal model's weights, its matrices in the type `kind`, as llama.cpp's converter would."""
    writer = gguf.GGUFWriter(path, architecture)
    write_config(writer, config)
    for key, value in metadata.items():
        add_value(writer, key.replace("__", ".").replace("ARCH", architecture), value)
    for name, tensor in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        x = tensor.detach().float()
        if ".q_proj." in name:
            x = permute(x, config.num_attention_heads)
        if ".k_proj." in name:
            x = permute(x, config.num_key_value_heads)
        type_ = GGMLQuantizationType[kind] if x.dim() == 2 else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), quantize(x.numpy(), type_), raw_dtype=type_)
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_config(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, type_: int, value: bytes) -> bytes:
    """One key of the metadata; `value` is already packed."""
    return string(key) + struct.pack("<I", type_ & 0xFFFFFFFF) + value


def tensor(name: str, dims: tuple[int, ...], type_: int = 0, offset: int = 0) -> bytes:
    """One tensor's entry; `dims` in GGUF's order, the fastest first."""
    head = string(name) + struct.pack("<I", len(dims))
    return (
        head
        + b"".join(struct.pack("<Q", dim) for dim in dims)
        + struct.pack("<IQ", type_ & 0xFFFFFFFF, offset)
    )


@dataclass
class RawGGUF:
    """The bytes of a file, each part of which can be wrong; by default a good one with one 4x2 matrix."""

    magic: bytes = b"GGUF"
    version: int = 3
    entries: list[bytes] = field(
        default_factory=lambda: [entry("general.architecture", STRING, string("llama"))]
    )
    tensors: list[bytes] = field(default_factory=lambda: [tensor("token_embd.weight", (4, 2))])
    num_entries: int | None = None
    num_tensors: int | None = None
    data: bytes = bytes(32)
    alignment: int = 32

    def write(self, path: Path) -> Path:
        counts = (
            len(self.tensors) if self.num_tensors is None else self.num_tensors,
            len(self.entries) if self.num_entries is None else self.num_entries,
        )
        head = self.magic + struct.pack("<IQQ", self.version, *counts)
        head += b"".join(self.entries) + b"".join(self.tensors)
        head += bytes(-len(head) % self.alignment)
        path.write_bytes(head + self.data)
        return path
