"""A SmolLM3 as the native library sees it: a torch model in, its architecture and its matrices out.

Matrices share the model's memory, bf16 or packed, except an NF4 model's head (native_head.py); norms and
biases are copied to float32. The model must be one that `native_runner.refusal` does not refuse.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smollm3.model.native_head import rounded_head, rounds_head
from smollm3.model.smollm3 import SmolLM3DecoderLayer, SmolLM3ForCausalLM
from smollm3.native.matrix import Matrix, from_bf16
from smollm3.native.network import Architecture, Layer, Weights
from smollm3.native.quantize import Arena
from smollm3.quantization.bitsandbytes_linear import Linear4bit
from smollm3.quantization.packed import PackedEmbedding, PackedLinear

Float32 = np.ndarray[Any, np.dtype[np.float32]]


def architecture_of(model: SmolLM3ForCausalLM) -> Architecture:
    """Return the sizes and angles of a model."""
    config, rotary = model.config, model.model.rotary_emb
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    return Architecture(
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.rms_norm_eps,
        _float32(rotary.inv_freq),
        rotary.scaling,
    )


def weights_of(model: SmolLM3ForCausalLM) -> Weights:
    """Return a model's matrices, norms and biases; a head tied to the embedding is mostly the same matrix."""
    embedding = _matrix(model.model.embed_tokens)
    arena = Arena()
    layers = tuple(_layer(layer, arena) for layer in model.model.layers)
    return Weights(embedding, layers, _float32(model.model.norm.weight), _head(model, embedding))


def _head(model: SmolLM3ForCausalLM, embedding: Matrix) -> Matrix:
    if rounds_head(model):
        return rounded_head(model)
    tied = model.config.tie_word_embeddings and not isinstance(model.lm_head, PackedLinear)
    return embedding if tied else _matrix(model.lm_head)


def _layer(layer: nn.Module, arena: Arena) -> Layer:
    assert isinstance(layer, SmolLM3DecoderLayer)
    attention, mlp = layer.self_attn, layer.mlp
    linears = (
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )
    return Layer(
        tuple(_matrix(linear, arena) for linear in linears),
        tuple(None if linear.bias is None else _float32(linear.bias) for linear in linears),
        _float32(layer.input_layernorm.weight),
        _float32(layer.post_attention_layernorm.weight),
        bool(attention.use_rope),
        attention.window or 0,
    )


def _matrix(module: nn.Module, arena: Arena | None = None) -> Matrix:
    if isinstance(module, PackedLinear | PackedEmbedding):
        return module.matrix
    if isinstance(module, Linear4bit):
        return module.native_matrix(arena)
    weight = module.weight
    assert isinstance(weight, Tensor)
    return from_bf16(weight.detach().view(torch.uint16).numpy())


def _float32(x: Tensor) -> Float32:
    array: Float32 = np.ascontiguousarray(x.detach().float().numpy())
    return array
