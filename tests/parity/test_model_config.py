"""Config files travel both ways between us and transformers with the same meaning."""

import random
from typing import Any

import pytest
import transformers
from model_oracle import ROPE, random_config

from smollm3.model.config import SmolLM3Config

FIELDS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "rope_parameters",
    "use_sliding_window",
    "sliding_window",
    "no_rope_layers",
    "no_rope_layer_interval",
    "layer_types",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "tie_word_embeddings",
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
]


def assert_same_meaning(ours: SmolLM3Config, theirs: Any) -> None:
    for name in FIELDS:
        assert getattr(ours, name) == getattr(theirs, name), name
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == head_dim


@pytest.mark.parametrize("seed", range(25))
def test_transformers_reads_what_we_write(seed: int) -> None:
    ours = random_config(random.Random(seed))
    assert_same_meaning(ours, transformers.SmolLM3Config(**ours.to_dict()))


@pytest.mark.parametrize("seed", range(25))
def test_we_read_what_transformers_writes(seed: int) -> None:
    theirs = transformers.SmolLM3Config(**random_config(random.Random(seed)).to_dict(), num_labels=3)
    assert_same_meaning(SmolLM3Config.from_dict(theirs.to_dict()), theirs)
    assert_same_meaning(SmolLM3Config.from_dict(theirs.to_diff_dict()), theirs)


def test_defaults_are_the_same() -> None:
    assert_same_meaning(SmolLM3Config(), transformers.SmolLM3Config())


@pytest.mark.parametrize("rope_type", ROPE)
def test_the_spelling_of_transformers_4_means_the_same(rope_type: str) -> None:
    scaling = {"type": rope_type, **ROPE[rope_type]} if rope_type != "default" else None
    old = {"model_type": "smollm3", "rope_theta": 3e5, "rope_scaling": scaling, "num_hidden_layers": 2}
    ours, theirs = SmolLM3Config.from_dict(old), transformers.SmolLM3Config(**old)
    assert ours.rope_parameters == {key: v for key, v in theirs.rope_parameters.items() if key != "type"}


def test_dtype_travels() -> None:
    theirs = transformers.SmolLM3Config(dtype="bfloat16")
    ours = SmolLM3Config.from_dict(theirs.to_dict())
    assert ours.dtype == "bfloat16"
    assert transformers.SmolLM3Config(**ours.to_dict()).dtype == theirs.dtype
