"""GGUF files of SmolLM3- and Llama-shaped models: their config, tokenizer metadata and weights in HF's terms.

Names become HF's, q and k rows get HF's order back, quantized blocks become floats through the gguf library.
Knows no nn.Module.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from smollm3.checkpoint.gguf_header import GGUFHeader, GGUFTensor, read_header
from smollm3.errors import CheckpointError

ARCHITECTURES = ("smollm3", "llama")
# llama.cpp knows SmolLM3's NoPE layers by this number alone: no GGUF key carries them.
NO_ROPE_INTERVAL = 4
READABLE = {
    getattr(GGMLQuantizationType, name)
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
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


def read_metadata(path: Path) -> Mapping[str, Any]:
    """Return a GGUF file's metadata: keys to Python values."""
    return read_header(path).metadata


class GGUFCheckpoint:
    """A GGUF file as a checkpoint; see `source.Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: GGUFHeader = read_header(path)
        self.generation_config: dict[str, Any] | None = None
        self.quantized = any(tensor.type not in _FLOATS for tensor in self.header.tensors.values())
        architecture = self.header.metadata.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{path} holds a model of architecture {architecture!r}: smollm3 and llama can be read"
            )
        self._tensors = self._rename()

    def __enter__(self) -> "GGUFCheckpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; tensors that were loaded stay."""

    def _get(self, key: str, default: Any = None) -> Any:
        name = f"{self.header.metadata['general.architecture']}.{key}"
        value = self.header.metadata.get(name, default)
        if value is None:
            raise CheckpointError(f"{self.path} has no {name} in its metadata: it is not complete")
        return value

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json that the metadata amounts to."""
        metadata = self.header.metadata
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise CheckpointError(f"{self.path} has no tensor token_embd.weight")
        num_layers, num_heads = self._get("block_count"), self._get("attention.head_count")
        no_rope = NO_ROPE_INTERVAL if metadata["general.architecture"] == "smollm3" else 0
        config: dict[str, Any] = {
            "model_type": "smollm3",
            "architectures": ["SmolLM3ForCausalLM"],
            "vocab_size": embedding[1].shape[0],
            "hidden_size": self._get("embedding_length"),
            "intermediate_size": self._get("feed_forward_length"),
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": self._get("attention.head_count_kv", num_heads),
            "max_position_embeddings": self._get("context_length"),
            "rms_norm_eps": _shortest(self._get("attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self._get("rope.freq_base", 10000.0)),
            "no_rope_layers": [int(not no_rope or (i + 1) % no_rope != 0) for i in range(num_layers)],
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self._tensors,
            "mlp_bias": "model.layers.0.mlp.up_proj.bias" in self._tensors,
            "hidden_act": "silu",
        }
        key_length = self._get("attention.key_length", 0)
        if key_length:
            config["head_dim"] = key_length
        for name in ("bos", "eos", "padding"):
            config[f"{name.removesuffix('ding')}_token_id"] = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if (scaling := self._rope_scaling()) is not None:
            config["rope_scaling"] = scaling
        return config

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self._get("rope.scaling.type", "none")
        if kind == "none":
            return self._rope_factors()
        if kind not in ("linear", "yarn"):
            raise CheckpointError(
                f"{self.path} asks for rope scaling {kind!r}: none, linear and yarn can be read"
            )
        scaling = {"rope_type": kind, "factor": float(self._get("rope.scaling.factor"))}
        if kind == "yarn":
            trained = self._get("rope.scaling.original_context_length")
            scaling["original_max_position_embeddings"] = int(trained)
        return scaling

    def _rope_factors(self) -> dict[str, Any] | None:
        """Llama 3.1 and later store the stretch of their frequencies as a tensor; the parameters are not there."""
        if "rope_freqs.weight" not in self.header.tensors:
            return None
        factors = self._floats(self.header.tensors["rope_freqs.weight"])
        if np.all(factors == 1):
            return None
        return {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }

    @property
    def tokenizer_metadata(self) -> Mapping[str, Any]:
        """What `text.tokenizer.Tokenizer.from_gguf` reads."""
        return self.header.metadata

    @property
    def stored_dtype(self) -> torch.dtype:
        """What "auto" stands for: bf16 for quantized files, else the type of the embedding."""
        embedding = self._tensors.get("model.embed_tokens.weight")
        if self.quantized or embedding is None:
            return torch.bfloat16
        return _FLOATS[embedding[1].type]

    def names(self) -> list[str]:
        """Return the tensors' HF names."""
        return list(self._tensors)

    def tensor_info(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return a tensor's shape and the dtype in which `load` gives it."""
        tensor = self._tensors[name][1]
        return tensor.shape, _FLOATS.get(tensor.type, torch.float32)

    def file_of(self, name: str) -> str:
        """Return the file and the name in it, for messages."""
        return f"{self.path} ({self._tensors[name][0]})"

    def load(self, name: str) -> Tensor:
        """Return a tensor under its HF name: float32, or F16 and BF16 as they are stored."""
        _, tensor = self._tensors[name]
        if tensor.type not in READABLE:
            raise CheckpointError(f"{self.file_of(name)} is {tensor.type.name}, which is not supported")
        if tensor.type in _FLOATS:
            raw = torch.from_numpy(self.raw(tensor).copy())
            loaded: Tensor = raw.view(_FLOATS[tensor.type]).view(tensor.shape)
        else:
            loaded = torch.from_numpy(self._floats(tensor))
        heads = self._permuted_heads(name)
        return loaded if heads is None else _unpermute(loaded, heads)

    def raw(self, tensor: GGUFTensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return a tensor's bytes, mapped from the file."""
        return np.memmap(self.path, np.uint8, "r", tensor.begin, (tensor.end - tensor.begin,))

    def _floats(self, tensor: GGUFTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        rows = self.raw(tensor).reshape(*tensor.shape[:-1], -1)
        floats: np.ndarray[Any, np.dtype[np.float32]] = np.ascontiguousarray(
            dequantize(
                rows if tensor.type != GGMLQuantizationType.F32 else rows.view(np.float32), tensor.type
            ),
            np.float32,
        ).reshape(tensor.shape)
        return floats

    def _permuted_heads(self, name: str) -> int | None:
        """llama.cpp's converter interleaves the rows of q and k of each head (for both architectures)."""
        if ".q_proj." in name:
            return int(self._get("attention.head_count"))
        if ".k_proj." in name:
            return int(self._get("attention.head_count_kv", self._get("attention.head_count")))
        return None

    def _rename(self) -> dict[str, tuple[str, GGUFTensor]]:
        renamed = {}
        for name, tensor in self.header.tensors.items():
            hf_name = _hf_name(name)
            if hf_name is None:
                raise CheckpointError(
                    f"{self.path} holds a tensor {name!r} that belongs to no SmolLM3 or Llama model"
                )
            if hf_name:
                renamed[hf_name] = (name, tensor)
        return renamed


_FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _hf_name(name: str) -> str | None:
    """HF's name of a GGUF tensor; empty for one that needs no loading, None for a stranger."""
    stem, _, kind = name.rpartition(".")
    if stem == "rope_freqs":
        return ""
    if kind not in ("weight", "bias"):
        return None
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _INNER:
        return f"model.layers.{parts[1]}.{_INNER[parts[2]]}.{kind}"
    return None


def _unpermute(x: Tensor, num_heads: int) -> Tensor:
    """Rows (pair, half) of each head back to (half, pair), as rotate-half wants them."""
    pairs = x.shape[0] // num_heads // 2
    return x.reshape(num_heads, pairs, 2, -1).transpose(1, 2).reshape(x.shape).contiguous()
