"""What a model is and what it will need, from its config and the shapes of its tensors alone.

In: a SmolLM3Config, and tensor shapes where a file has been read. Out: plain numbers. Loads no weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from smollm3.model.config import SmolLM3Config

Shapes = Mapping[str, Sequence[int]]
TOKENS_OF_CONTEXT = 1000
_BLOCK, _NESTED_BLOCK = 64, 256  # NF4: weights per scale, scales per scale of scales


def shapes_from_config(config: SmolLM3Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of the causal language model that `config` describes."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim or 0
    queries, keys = config.num_attention_heads * head_dim, (config.num_key_value_heads or 0) * head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden, config.attention_bias),
        "self_attn.k_proj": (keys, hidden, config.attention_bias),
        "self_attn.v_proj": (keys, hidden, config.attention_bias),
        "self_attn.o_proj": (hidden, queries, config.attention_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer_idx in range(config.num_hidden_layers):
        layer = f"model.layers.{layer_idx}"
        for name, (rows, columns, has_bias) in linears.items():
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{layer}.{name}.bias"] = (rows,)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def weight_bytes(shapes: Shapes) -> dict[str, int]:
    """Return the weights' bytes in each format; 4 and 8 bits hold the layers' matrices, bf16 the rest."""
    total = sum(math.prod(shape) for shape in shapes.values())
    matrices = [
        shape for name, shape in shapes.items() if ".layers." in name and name.endswith("_proj.weight")
    ]
    packed = sum(math.prod(shape) for shape in matrices)
    rows = sum(shape[0] for shape in matrices)
    rest = 2 * (total - packed)
    scales = packed // _BLOCK + 4 * (packed // (_BLOCK * _NESTED_BLOCK))
    return {
        "float32": 4 * total,
        "bfloat16": 2 * total,
        "int8": packed + 4 * rows + rest,
        "nf4": packed // 2 + scales + rest,
    }


def kv_bytes_per_token(config: SmolLM3Config) -> dict[str, int]:
    """Return the bytes that one token of context takes in all layers' keys and values."""
    width = (config.num_key_value_heads or 0) * (config.head_dim or 0)
    numbers = 2 * config.num_hidden_layers * width
    return {"float32": 4 * numbers, "bfloat16": 2 * numbers}


def describe_model(name: str, config: SmolLM3Config, stored: Shapes | None = None) -> dict[str, Any]:
    """Return what `smollm3 info MODEL` shows; `stored` are the shapes that the checkpoint's headers name."""
    expected = shapes_from_config(config)
    shapes = expected if stored is None else {key: stored[key] for key in expected if key in stored}
    missing = [] if stored is None else sorted(set(expected) - set(stored))
    return {
        "model": name,
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "layers": config.num_hidden_layers,
        "nope_layers": [idx for idx in range(config.num_hidden_layers) if not config.use_rope(idx)],
        "hidden_size": config.hidden_size,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "context_size": config.max_position_embeddings,
        "checkpoint_dtype": config.dtype,
        "quantization": _scheme(config.quantization_config),
        "weights_bytes": weight_bytes(shapes),
        "kv_bytes_per_1000_tokens": {k: TOKENS_OF_CONTEXT * v for k, v in kv_bytes_per_token(config).items()},
        "missing_tensors": missing,
    }


def gigabytes(count: float) -> str:
    """Return a count of bytes as people read it (1 GB is a thousand million)."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB"


def model_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts as lines for people."""
    nope = facts["nope_layers"]
    count = facts["parameters"]
    size = f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
    weights, kv = facts["weights_bytes"], facts["kv_bytes_per_1000_tokens"]
    lines = [
        f"model         {facts['model']}",
        f"parameters    {count:,} ({size})",
        f"layers        {facts['layers']}, {_nope(nope)}",
        f"attention     {facts['attention_heads']} heads, {facts['key_value_heads']} for keys and values, "
        f"hidden size {facts['hidden_size']}",
        f"vocabulary    {facts['vocab_size']:,} tokens",
        f"context       {facts['context_size']:,} tokens",
        "memory        " + ", ".join(f"{dtype} {gigabytes(size_)}" for dtype, size_ in weights.items()),
        "              "
        + "and per 1,000 tokens of context "
        + ", ".join(f"{dtype} {gigabytes(size_)}" for dtype, size_ in kv.items()),
    ]
    formats = [facts["checkpoint_dtype"], facts["quantization"] and f"matrices in {facts['quantization']}"]
    if any(formats):
        lines.append(f"stored as     {', '.join(filter(None, formats))}")
    if facts["missing_tensors"]:
        first = facts["missing_tensors"][0]
        lines.append(
            f"incomplete    {len(facts['missing_tensors'])} tensors are missing, the first is {first}"
        )
    return lines


def _nope(layers: Sequence[int]) -> str:
    if not layers:
        return "all with rotary positions"
    return f"{len(layers)} of them without positions (NoPE): {', '.join(map(str, layers))}"


def _scheme(stored: Mapping[str, Any] | None) -> str | None:
    if not stored:
        return None
    if stored.get("load_in_4bit"):
        return str(stored.get("bnb_4bit_quant_type", "fp4"))
    return "int8" if stored.get("load_in_8bit") else str(stored.get("scheme") or stored.get("quant_method"))
