"""SmolLM3: a decoder of pre-norm layers with grouped-query attention, where every fourth layer has no
positions.

In: token ids or embeddings, a mask, positions, a cache. Out: hidden states, logits, a loss. Parameter names
are the checkpoint's. Knows no file, no tokenizer and no sampling.
Shapes: B batch, T new tokens, S cached and new tokens, N hidden size, H query heads, K kv heads, D head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smollm3.errors import ParameterError
from smollm3.model.cache import Cache, DynamicCache
from smollm3.model.config import SmolLM3Config
from smollm3.model.generation import GenerationMixin
from smollm3.model.module import SmolLM3PreTrainedModel, SmolLM3RMSNorm, SmolLM3RotaryEmbedding
from smollm3.model.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from smollm3.ops.attention import attention
from smollm3.ops.loss import causal_lm_loss
from smollm3.ops.mask import Layout, Visibility, given_visibility, layout, positions_from_mask, visibility
from smollm3.ops.rotary import rotate

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_pytorch_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
}


@dataclass(frozen=True)
class Step:
    """What every layer of one forward pass shares: angles, what may be seen per window, and the cache."""

    cos: Tensor
    sin: Tensor
    seen: dict[int | None, Visibility]
    cache: Cache | None
    implementation: str
    want_weights: bool


class SmolLM3Attention(nn.Module):
    """Grouped-query attention; rotates queries and keys unless its layer is a NoPE layer."""

    def __init__(self, config: SmolLM3Config, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.layer_idx = layer_idx
        self.head_dim = D
        self.use_rope = config.use_rope(layer_idx)
        self.window = config.window(layer_idx)
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.hidden_size, H * D, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, K * D, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, K * D, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * D, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # [B, H, T, D]
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # [B, K, T, D]
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # [B, K, T, D]
        if self.use_rope:
            q, k = rotate(q, k, step.cos, step.sin)
        if step.cache is not None:
            k, v = step.cache.update(k, v, self.layer_idx)  # [B, K, S, D]
        mixed = attention(
            q,
            k,
            v,
            step.seen[self.window],
            scale=self.head_dim**-0.5,
            dropout=self.dropout if self.training else 0.0,
            implementation=step.implementation,
        )
        out: Tensor = self.o_proj(mixed.values.reshape(B, T, -1))
        return out, mixed.weights if step.want_weights else None


class SmolLM3MLP(nn.Module):
    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = _ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return out


class SmolLM3DecoderLayer(nn.Module):
    def __init__(self, config: SmolLM3Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = SmolLM3Attention(config, layer_idx)
        self.mlp = SmolLM3MLP(config)
        self.input_layernorm = SmolLM3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SmolLM3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.self_attn(self.input_layernorm(x), step)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), weights


class SmolLM3Model(SmolLM3PreTrainedModel):
    """Embeddings, layers and the final norm."""

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            SmolLM3DecoderLayer(config, idx) for idx in range(config.num_hidden_layers)
        )
        self.norm = SmolLM3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = SmolLM3RotaryEmbedding(config)
        self.post_init_()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Run the layers over new tokens.

        Args:
            input_ids: [B, T]; or give `inputs_embeds` [B, T, N] instead, never both.
            attention_mask: None, [B, S] with 0 for padding on either side, or ready-made bool [B, 1, T, S].
            position_ids: [B, T] or [1, T]; by default each row counts its real tokens from 0. Where they stop
                rising, a new document starts that sees nothing of the one before.
            past_key_values: the cache of the tokens before these; it is written to.
            use_cache: return a cache; by default the config's wish, and no in training.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ParameterError("give exactly one of input_ids and inputs_embeds")
        want_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_weights = config.output_attentions if output_attentions is None else output_attentions
        if want_weights and self.attn_implementation != "eager":
            raise ParameterError(
                f"{self.attn_implementation} computes no attention weights: for output_attentions load with "
                "attn_implementation='eager'"
            )
        cache = self._choose_cache(past_key_values, use_cache)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        step = self._prepare(x, attention_mask, position_ids, cache, want_weights)
        states, weights = [x], []
        for layer in self.layers:
            x, layer_weights = self._run(layer, x, step)
            if want_states:
                states.append(x)
            weights.append(layer_weights)
        x = self.norm(x)
        out = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache if use_cache is not False else None,
            hidden_states=(*states[:-1], x) if want_states else None,  # the last layer's is returned normed
            attentions=tuple(weights) if want_weights else None,  # type: ignore[arg-type]
        )
        return out if self.wants_dict(return_dict) else out.to_tuple()

    def _choose_cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        recomputes = self.gradient_checkpointing and self.training
        if recomputes and (given is not None or use_cache):
            raise ParameterError(
                "gradient checkpointing runs layers twice and cannot fill a cache: drop one of the two"
            )
        if given is not None:
            return given
        wanted = self.config.use_cache and not self.training if use_cache is None else use_cache
        return DynamicCache() if wanted else None

    def _prepare(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        want_weights: bool,
    ) -> Step:
        """Compute once what all layers share."""
        B, T, _ = x.shape
        past = cache.get_seq_length() if cache is not None else 0
        windows = {self.config.window(idx) for idx in range(len(self.layers))}
        ready = attention_mask is not None and attention_mask.dim() == 4
        if ready:
            assert attention_mask is not None
            seen = {window: given_visibility(attention_mask.to(x.device), window) for window in windows}
        else:
            room = getattr(cache, "max_cache_len", None) or past + T
            where = layout(
                attention_mask,
                position_ids,
                batch_size=B,
                num_queries=T,
                num_keys=room,
                past=past,
                device=x.device,
            )
            seen = {window: visibility(where, window) for window in windows}
        if position_ids is None:
            position_ids = self._positions(None if ready else where, past, T, x.device)
        cos, sin = self.rotary_emb(position_ids.to(x.device), x.dtype)
        return Step(cos, sin, seen, cache, self.attn_implementation, want_weights)

    @staticmethod
    def _positions(where: Layout | None, past: int, T: int, device: torch.device) -> Tensor:
        if where is not None and where.real is not None:
            return positions_from_mask(where.real, past, T)
        return torch.arange(past, past + T, device=device)[None]

    def _run(self, layer: nn.Module, x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        if self.gradient_checkpointing and self.training:
            out: tuple[Tensor, Tensor | None] = checkpoint(layer, x, step, use_reentrant=False)
            return out
        plain: tuple[Tensor, Tensor | None] = layer(x, step)
        return plain


class SmolLM3ForCausalLM(GenerationMixin, SmolLM3PreTrainedModel):
    """The model with its language head, by default tied to the embeddings."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__(config)
        self.model = SmolLM3Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init_()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Predict the next token at each position; see SmolLM3Model.forward for the first arguments.

        Args:
            labels: [B, T], the input ids, -100 where nothing is to be learnt; moved by one in here.
            shift_labels: [B, T], labels that are already moved by one.
            logits_to_keep: last positions to compute logits for (0: all), or the indices of those positions.
            num_items_in_batch: labels in the whole accumulated batch; the loss is then a sum divided by it.
        """
        base = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        kept = (
            slice(-logits_to_keep, None)
            if isinstance(logits_to_keep, int) and logits_to_keep
            else logits_to_keep
        )
        x = base.last_hidden_state
        logits = self.lm_head(x if isinstance(kept, int) else x[:, kept])
        loss = None
        if labels is not None or shift_labels is not None:
            loss = causal_lm_loss(
                logits, labels, shift_labels=shift_labels, num_items_in_batch=num_items_in_batch
            )
        out = CausalLMOutputWithPast(loss, logits, base.past_key_values, base.hidden_states, base.attentions)
        return out if self.wants_dict(return_dict) else out.to_tuple()
