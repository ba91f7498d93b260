"""Tiny random models and a tokenizer trained on the spot, for the tests of whatever stands on both."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from smollm3.model.config import SmolLM3Config
from smollm3.model.heads import (
    SmolLM3ForQuestionAnswering,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
)
from smollm3.model.module import SmolLM3PreTrainedModel
from smollm3.model.smollm3 import SmolLM3ForCausalLM, SmolLM3Model

Model = TypeVar("Model", bound=SmolLM3PreTrainedModel)

MODEL_CLASSES: list[Any] = [
    SmolLM3Model,
    SmolLM3ForCausalLM,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
    SmolLM3ForQuestionAnswering,
]

CORPUS = [
    "Ada Lovelace wrote to Charles Babbage in London about the engine.",
    "The capital of France is Paris, and Berlin is the capital of Germany.",
    "Where did she live? She lived in Amsterdam near the old harbour.",
    "Microsoft and the New York Times met in the café on Monday.",
] * 3
SPECIAL = ["<|pad|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path, *, model_max_length: int = 512) -> Path:
    """Train a byte-level BPE tokenizer and write it as a checkpoint's tokenizer files."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "eos_token": "<|im_end|>",
        "model_max_length": model_max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny_config(**changes: Any) -> SmolLM3Config:
    """A config of four small layers, one of them without positions."""
    fields: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 3,
        "initializer_range": 0.4,
        "rope_theta": 10_000.0,
    }
    return SmolLM3Config(**{**fields, **changes})


def tiny_model(model_class: type[Model], *, seed: int = 0, **changes: Any) -> Model:
    """Build a tiny random model of a class: `tiny_model(SmolLM3ForTokenClassification, num_labels=3)`."""
    torch.manual_seed(seed)
    return model_class(tiny_config(**changes)).eval()
