"""What every SmolLM3 module has beside its forward pass: initial weights, ties, buffers, switches.

In: a config. Out: a module that can be built on the meta device and filled later. Knows no file; reading and
writing checkpoints is in `pretrained.py`.
"""

from typing import ClassVar

import torch
from torch import nn

from smollm3.model.config import SmolLM3Config
from smollm3.model.config_checks import check_config
from smollm3.model.pretrained import PreTrained
from smollm3.ops.attention import check_implementation


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
        """Give a freshly built module its initial weights and ties; on the meta device there is nothing to fill."""
        if next(self.parameters()).device.type != "meta":
            self.init_weights_()
        self.tie_weights()

    @torch.no_grad()
    def init_weights_(self) -> None:
        """Draw matrices from a normal distribution of `initializer_range`; norms 1, biases and the pad row 0."""
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()

    def tie_weights(self) -> None:
        """Make the language head share the embedding's weight where the config ties them."""
        if self.config.tie_word_embeddings:
            for name, source in self._tied_weights_keys.items():
                owner, _, attribute = name.rpartition(".")
                setattr(self.get_submodule(owner), attribute, self.get_parameter(source))

    def reset_buffers_(self, device: torch.device | str) -> None:
        """Compute the buffers that no checkpoint stores on `device`, after building on the meta device."""
        for module in self.modules():
            if hasattr(module, "reset_"):
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
