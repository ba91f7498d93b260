"""What every SmolLM3 module has beside its forward pass: initial weights, ties, buffers, switches.

In: a config. Out: a module that can be built on the meta device and filled later. Knows no file; reading and
writing checkpoints is in `pretrained.py`.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from smollm3.model.config import SmolLM3Config
from smollm3.model.config_checks import check_config
from smollm3.model.pretrained import PreTrained
from smollm3.ops.attention import check_implementation
from smollm3.ops.norm import rms_norm
from smollm3.ops.rotary import cos_sin, inv_freq


class SmolLM3RotaryEmbedding(nn.Module):
    """The frequencies of the RoPE layers, in float32 whatever the model's dtype."""

    inv_freq: Tensor

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__()
        self.config = config
        self.scaling = 1.0
        self.register_buffer("inv_freq", torch.empty(0), persistent=False)
        self.reset_(torch.get_default_device())

    def reset_(self, device: torch.device | str) -> None:
        """Compute the buffer again on `device`."""
        self.inv_freq, self.scaling = self._frequencies(None, device)

    def _frequencies(self, seq_len: Tensor | None, device: torch.device | str) -> tuple[Tensor, float]:
        config = self.config
        assert config.rope_parameters is not None
        assert config.head_dim is not None
        return inv_freq(
            config.rope_parameters,
            config.head_dim,
            seq_len,
            max_position_embeddings=config.max_position_embeddings,
            device=device,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SmolLM3RotaryEmbedding":
        # `model.to(bfloat16)` would round them and `to_empty` leave them unset: compute them again instead.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reset_(self.inv_freq.device)
        return self

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        frequencies, scaling = self.inv_freq, self.scaling
        assert self.config.rope_parameters is not None
        if self.config.rope_parameters["rope_type"] == "dynamic":
            frequencies, scaling = self._frequencies(position_ids.max() + 1, position_ids.device)
        return cos_sin(position_ids, frequencies, scaling, dtype)


class SmolLM3RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class SmolLM3PreTrainedModel(PreTrained, nn.Module):
    """Base of SmolLM3Model and of the models with a head."""

    base_model_prefix: ClassVar[str] = "model"
    _tied_weights_keys: ClassVar[dict[str, str]] = {}
    config: SmolLM3Config

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        self.gradient_checkpointing = False

    def post_init_(self) -> None:
        """Give a freshly built module its initial weights and ties; on the meta device nothing is drawn."""
        if next(self.parameters()).device.type != "meta":
            bases = [child for child in self.children() if isinstance(child, SmolLM3PreTrainedModel)]
            done = {module for base in bases for module in base.modules()}
            self._draw_(module for module in self.modules() if module not in done)
        self.tie_weights()

    def init_weights_(self) -> None:
        """Draw matrices from a normal distribution of `initializer_range`; norms 1, biases and pad row 0."""
        self._draw_(self.modules())
        self.tie_weights()

    @torch.no_grad()
    def _draw_(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
            if isinstance(module, SmolLM3RMSNorm):
                module.weight.fill_(1.0)

    def tie_weights(self) -> None:
        """Make the language head share the embedding's weight where the config ties them."""
        if self.config.tie_word_embeddings:
            for name, source in self._tied_weights_keys.items():
                owner, _, attribute = name.rpartition(".")
                setattr(self.get_submodule(owner), attribute, self.get_parameter(source))

    def reset_buffers_(self, device: torch.device | str) -> None:
        """Compute the buffers that no checkpoint stores on `device`, after building on the meta device."""
        for module in self.modules():
            if isinstance(module, SmolLM3RotaryEmbedding):
                module.reset_(device)

    @property
    def base_model(self) -> "SmolLM3PreTrainedModel":
        """The module without its head (the module itself where it has none)."""
        base: SmolLM3PreTrainedModel = getattr(self, self.base_model_prefix, self)
        return base

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        embedding = self.base_model.get_submodule("embed_tokens")
        assert isinstance(embedding, nn.Embedding)
        return embedding

    @property
    def attn_implementation(self) -> str:
        """How attention is computed: eager, sdpa (the default), flash_attention_2 or flex_attention."""
        return self.config.attn_implementation or "sdpa"

    def set_attn_implementation(self, implementation: str) -> None:
        """Switch how attention is computed.

        Raises ParameterError, DeviceError or MissingDependencyError when the model's device cannot do it.
        """
        check_implementation(implementation, next(self.parameters()).device)
        self.config.attn_implementation = implementation

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        self._set_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._set_checkpointing(False)

    def _set_checkpointing(self, value: bool) -> None:
        for module in self.modules():
            if isinstance(module, SmolLM3PreTrainedModel):
                module.gradient_checkpointing = value

    def wants_dict(self, return_dict: bool | None) -> bool:
        """Whether a forward pass returns its output object (else a tuple)."""
        return self.config.return_dict if return_dict is None else return_dict
