"""Writes a checkpoint as a GGUF file that llama.cpp runs: header first, then one tensor at a time.

In: an open checkpoint, its config in full, the tokenizer's keys, a type for the matrices. Out: a file that is
whole or not there. Rows of q and k get llama.cpp's order; norms and biases stay float32. How floats become
blocks is the caller's choice. Knows no nn.Module.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from numpy.typing import NDArray
from torch import Tensor

from smollm3.checkpoint.gguf import INNER_NAMES, OUTER_NAMES, ROPE_FACTORS, GGUFCheckpoint
from smollm3.checkpoint.gguf_write_config import architecture_for, config_metadata, head_dim_of, rope_factors
from smollm3.checkpoint.progress import progress
from smollm3.checkpoint.source import Checkpoint
from smollm3.errors import CheckpointError

Bytes = NDArray[np.uint8]
Encode = Callable[[Tensor, str], Bytes]  # rows of floats and "Q4_0" or "Q8_0" to rows of blocks
FILE_TYPES = {
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "f16": LlamaFileType.MOSTLY_F16,
    "f32": LlamaFileType.ALL_F32,
}
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_STRETCH = 2**22  # weights that are converted at a time
_PREFIXES = ("model.", "transformer.", "")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class _Planned:
    """A tensor on its way: where from, what it must look like there, and what it becomes."""

    source: str  # in the checkpoint
    name: str  # in the file
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    heads: int  # whose rows are to be reordered; 0: none

    @property
    def nbytes(self) -> int:
        block_size, block_bytes = GGML_QUANT_SIZES[self.type]
        return prod(self.shape) // block_size * block_bytes


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    kind: str,
    *,
    name: str,
    tokenizer: Mapping[str, Any],
    encode: Encode,
) -> None:
    """Write `checkpoint` to the file `path`, its matrices in `kind`, a key of FILE_TYPES.

    With q4_0 the embedding and the language head become Q8_0. Blocks that the checkpoint holds in the wanted
    type are copied as they are.

    Args:
        config: a SmolLM3Config as a dict, every field of the architecture filled in.
        tokenizer: keys of the metadata, as the modules for the tokenizer give them.
        encode: makes blocks of floats; `encode_plainly` is one.

    Raises CheckpointError for what llama.cpp cannot run, tensors that do not fit the config, a full disk.
    """
    architecture = architecture_for(config)
    planned = _plan(checkpoint, config, kind)
    metadata = {"general.type": "model", "general.name": name, "general.quantization_version": 2}
    metadata["general.file_type"] = int(FILE_TYPES[kind])
    part = path.with_name(f".{path.name}.part")
    writer = GGUFWriter(part, architecture)
    try:
        for key, value in {**metadata, **config_metadata(config, architecture), **tokenizer}.items():
            _add_value(writer, key, value)
        _write(writer, checkpoint, planned, rope_factors(config), encode)
        writer.close()
        part.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}): give another file with --gguf"
        ) from error
    finally:
        with suppress(OSError):  # a full disk fails once more on closing
            writer.close()
        part.unlink(missing_ok=True)


def _add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _write(
    writer: GGUFWriter,
    checkpoint: Checkpoint,
    planned: list[_Planned],
    factors: NDArray[np.float32] | None,
    encode: Encode,
) -> None:
    float32 = np.dtype(np.float32)  # stands for "the shape is in weights"
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, float32, factors.nbytes)
    for tensor in planned:
        writer.add_tensor_info(tensor.name, tensor.shape, float32, tensor.nbytes, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    blocks = _as_blocks(checkpoint)
    try:
        for tensor in progress(planned, len(planned), "Writing tensors"):
            writer.write_tensor_data(_converted(checkpoint, blocks, tensor, encode))
    finally:
        if blocks is not None:
            blocks.close()


def _as_blocks(checkpoint: Checkpoint) -> GGUFCheckpoint | None:
    """Open a GGUF file once more, in such a way that its blocks stay blocks."""
    if not isinstance(checkpoint, GGUFCheckpoint):
        return None
    blocks = GGUFCheckpoint(checkpoint.path)
    blocks.keep_blocks()
    return blocks


def _plan(checkpoint: Checkpoint, config: Mapping[str, Any], kind: str) -> list[_Planned]:
    """Settle every tensor before the first byte is written."""
    found = {_full_name(name): name for name in checkpoint.names() if not name.endswith("inv_freq")}
    if config["tie_word_embeddings"]:
        head = found.pop(_HEAD, None)  # the embedding once more, or in its place
        if head is not None:
            found.setdefault(_EMBEDDING, head)
    planned = []
    for hf_name, (name, shape, heads) in _expected(config).items():
        if hf_name not in found:
            raise CheckpointError(f"{checkpoint.path} holds no {hf_name!r}: its weights are not complete")
        source = found.pop(hf_name)
        stored, dtype = checkpoint.tensor_info(source)
        if stored != shape or not dtype.is_floating_point:
            raise CheckpointError(
                f"{checkpoint.file_of(source)}: {source!r} is {dtype} of shape {stored}, the config asks for "
                f"floats of shape {shape}: one of the two is damaged"
            )
        planned.append(_Planned(source, name, shape, _type_of(hf_name, shape, kind), heads))
    if found:
        odd = next(iter(found.values()))
        raise CheckpointError(
            f"{checkpoint.file_of(odd)} holds {odd!r}, which is no part of a language model: export a "
            "SmolLM3ForCausalLM"
        )
    return planned


def _full_name(name: str) -> str:
    """A tensor's name in the language model, also for what a base model or another head was saved as."""
    for prefix in _PREFIXES:
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest.startswith(("embed_tokens.", "layers.", "norm.")):
            return f"model.{rest}"
    return name


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Map HF's name of every tensor to its name in the file, its shape, and the heads to reorder."""
    N, M, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    H, K, D = config["num_attention_heads"], config["num_key_value_heads"], head_dim_of(config)
    rows = {"q_proj": H * D, "k_proj": K * D, "v_proj": K * D, "o_proj": N}
    rows |= {"gate_proj": M, "up_proj": M, "down_proj": N}
    cols = {"o_proj": H * D, "down_proj": M}
    heads = {"q_proj": H, "k_proj": K}
    expected: dict[str, tuple[str, tuple[int, ...], int]] = {}
    expected[_EMBEDDING] = ("token_embd.weight", (V, N), 0)
    for layer in range(config["num_hidden_layers"]):
        for name, hf_name in INNER_NAMES.items():
            part, _, short = hf_name.rpartition(".")
            ours, theirs = f"model.layers.{layer}.{hf_name}", f"blk.{layer}.{name}"
            if short not in rows:
                expected[f"{ours}.weight"] = (f"{theirs}.weight", (N,), 0)
                continue
            shape = (rows[short], cols.get(short, N))
            expected[f"{ours}.weight"] = (f"{theirs}.weight", shape, heads.get(short, 0))
            if config["attention_bias" if part == "self_attn" else "mlp_bias"]:
                expected[f"{ours}.bias"] = (f"{theirs}.bias", shape[:1], heads.get(short, 0))
    expected[f"{OUTER_NAMES['output_norm']}.weight"] = ("output_norm.weight", (N,), 0)
    if not config["tie_word_embeddings"]:
        expected[_HEAD] = ("output.weight", (V, N), 0)
    return expected


def _type_of(hf_name: str, shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    """Return the type that a tensor is written in. Raises CheckpointError where its rows are no blocks."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if kind == "q4_0" and hf_name in (_EMBEDDING, _HEAD):
        kind = "q8_0"
    type_ = GGMLQuantizationType[kind.upper()]
    if shape[1] % GGML_QUANT_SIZES[type_][0]:
        raise CheckpointError(
            f"{hf_name} has {shape[1]} columns, which do not divide into the {kind} blocks of "
            f"{GGML_QUANT_SIZES[type_][0]}: use --type bf16"
        )
    return type_


def _converted(
    checkpoint: Checkpoint, blocks: GGUFCheckpoint | None, tensor: _Planned, encode: Encode
) -> Bytes:
    """Return the bytes of a tensor in its new type."""
    if blocks is not None and len(tensor.shape) == 2:
        kept = ((tensor.shape[0], tensor.nbytes // tensor.shape[0]), torch.uint8)
        if blocks.tensor_info(tensor.source) == kept:
            return _reordered(blocks.load(tensor.source), tensor.heads).numpy()
    weights = _reordered(checkpoint.load(tensor.source), tensor.heads)
    out = np.empty((tensor.shape[0], tensor.nbytes // tensor.shape[0]), np.uint8)
    step = max(1, _STRETCH // prod(tensor.shape[1:]) // 16 * 16)
    for row in range(0, tensor.shape[0], step):
        try:
            out[row : row + step] = _encoded(weights[row : row + step], tensor.type.name, encode)
        except ValueError as error:
            raise CheckpointError(
                f"{checkpoint.file_of(tensor.source)}: {tensor.source!r} {error}: use --type bf16"
            ) from None
    return out


def _encoded(rows: Tensor, type_name: str, encode: Encode) -> Bytes:
    if type_name not in _FLOATS:
        return encode(rows, type_name)
    floats = rows.to(_FLOATS[type_name])
    if type_name == "F16" and not torch.equal(floats.isinf(), rows.isinf()):
        raise ValueError("holds weights too large for f16")
    return floats.contiguous().reshape(len(rows), -1).view(torch.uint8).numpy()


def encode_plainly(weights: Tensor, type_name: str) -> Bytes:
    """Return rows as Q4_0 or Q8_0 blocks, rounded by the largest weight of each as llama.cpp does.

    Raises ValueError for weights that are not finite or too large for f16 scales.
    """
    rows = weights.float()
    largest = rows.abs().max().item()
    if not largest <= 65504.0 * 8:  # NaN compares false
        raise ValueError("holds weights that are NaN, infinite or too large for f16 scales")
    encoded: Bytes = quantize(rows.numpy(), GGMLQuantizationType[type_name])
    return encoded


def _reordered(x: Tensor, heads: int) -> Tensor:
    """Bring the rows of each head from (half, pair) to (pair, half), as llama.cpp rotates them."""
    if not heads:
        return x
    pairs = x.shape[0] // heads // 2
    return x.reshape(heads, 2, pairs, -1).transpose(1, 2).reshape(x.shape).contiguous()
