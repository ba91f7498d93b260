"""Random tiny models, built twice: ours and transformers', with the same weights."""

import random
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from smollm3.model import heads, smollm3
from smollm3.model.config import SmolLM3Config

ROPE = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
OURS: dict[str, Any] = {
    "CausalLM": smollm3.SmolLM3ForCausalLM,
    "SequenceClassification": heads.SmolLM3ForSequenceClassification,
    "TokenClassification": heads.SmolLM3ForTokenClassification,
    "QuestionAnswering": heads.SmolLM3ForQuestionAnswering,
}


def random_config(rng: random.Random, **fixed: Any) -> SmolLM3Config:
    """A tiny architecture drawn from everything a config can ask for."""
    K, group = rng.choice([(1, 1), (1, 4), (2, 1), (2, 2), (1, 2), (2, 4)])
    D = rng.choice([8, 16])
    num_layers = rng.randint(1, 4)
    rope_type = rng.choice(list(ROPE))
    pattern = rng.choice(["interval", "list", "none"])
    drawn: dict[str, Any] = {
        "vocab_size": rng.randint(40, 90),
        "hidden_size": K * group * D,
        "intermediate_size": rng.choice([24, 40]),
        "num_hidden_layers": num_layers,
        "num_attention_heads": K * group,
        "num_key_value_heads": K,
        "max_position_embeddings": 64 if rope_type != "dynamic" else 8,
        "rope_parameters": {"rope_type": rope_type, "rope_theta": rng.choice([1e4, 5e6]), **ROPE[rope_type]},
        "no_rope_layer_interval": rng.choice([2, 3, 4]),
        "attention_bias": rng.random() < 0.5,
        "mlp_bias": rng.random() < 0.5,
        "tie_word_embeddings": rng.random() < 0.5,
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
        "pad_token_id": rng.choice([None, 0, 3]),
        "num_labels": 3,
        "initializer_range": 0.2,  # large enough that a wrong mask or angle shows
    }
    if rng.random() < 0.3:
        drawn |= {"head_dim": 2 * D}
    if rng.random() < 0.4:
        drawn |= {"use_sliding_window": True, "sliding_window": rng.choice([1, 3, 6])}
    if pattern == "list":
        drawn["no_rope_layers"] = [rng.randint(0, 1) for _ in range(num_layers)]
    elif pattern == "none":
        drawn["no_rope_layers"] = [1] * num_layers
    return SmolLM3Config(**{**drawn, **fixed})


def build_pair(
    config: SmolLM3Config, kind: str = "CausalLM", *, ours: str = "sdpa", theirs: str = "sdpa", seed: int = 0
) -> tuple[Any, Any]:
    """Return our model and transformers', in inference mode, with one set of weights."""
    torch.manual_seed(seed)
    config.attn_implementation = ours
    mine = OURS[kind](config).eval()
    for parameter in mine.parameters():
        if parameter.dim() == 1:  # norms and biases start as ones and zeros, which would hide a mistake
            nn.init.normal_(parameter, mean=float(parameter.mean().item()), std=0.2)
    hf_config = transformers.SmolLM3Config(**config.to_dict())
    hf_config._attn_implementation = theirs
    reference = getattr(transformers, f"SmolLM3For{kind}")(hf_config).eval()
    missing = reference.load_state_dict(mine.state_dict())
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    if config.tie_word_embeddings:
        reference.tie_weights()
    return mine, reference


@dataclass
class Batch:
    """Rows of random ids; `real` [B, T] tells tokens from padding, `inputs` goes into both models."""

    ids: Tensor
    real: Tensor
    inputs: dict[str, Tensor]

    @property
    def labels(self) -> Tensor:
        return self.ids.masked_fill(~self.real, -100)


def random_batch(rng: random.Random, config: SmolLM3Config, layout: str, B: int = 3, T: int = 13) -> Batch:
    """A batch laid out as: plain, left or right padding, or packed documents."""
    ids = torch.tensor([[rng.randrange(4, config.vocab_size) for _ in range(T)] for _ in range(B)])
    real = torch.ones(B, T, dtype=torch.bool)
    inputs: dict[str, Tensor] = {}
    if layout in ("left", "right"):
        for row in range(1, B):
            pads = rng.randint(0, T - 2)
            real[row, slice(None, pads) if layout == "left" else slice(T - pads, None)] = False
        ids = ids.masked_fill(~real, config.pad_token_id or 0)
        inputs["attention_mask"] = real.long()
    if layout == "packed":
        rows = []
        for _ in range(B):
            cuts = sorted(rng.sample(range(1, T), rng.randint(0, 3)))
            rows.append([i - max([c for c in [0, *cuts] if c <= i]) for i in range(T)])
        inputs["position_ids"] = torch.tensor(rows)
    return Batch(ids, real, {"input_ids": ids, **inputs})


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of every parameter by name; zeros where a parameter took no part."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def assert_same_gradients(mine: nn.Module, reference: nn.Module, tolerance: float = 1e-5) -> None:
    left, right = gradients(mine), gradients(reference)
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        torch.testing.assert_close(
            gradient, right[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
