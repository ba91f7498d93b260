"""Checkpoints go both ways between transformers and this package: all heads, whole and in shards."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_oracle import OURS, build_pair, random_config
from torch import nn

from smollm3.model.smollm3 import SmolLM3Model

KINDS = list(OURS)
IDS = torch.tensor([[5, 9, 14, 23, 31, 8, 17, 6], [7, 11, 30, 4, 22, 16, 9, 25]])


def pair(kind: str, seed: int, **fixed: Any) -> tuple[Any, Any]:
    return build_pair(random_config(random.Random(seed), pad_token_id=0, **fixed), kind, seed=seed)


def answers(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out: Any = model(input_ids=IDS)
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits])
    logits: torch.Tensor = out.logits
    return logits


def assert_same_model(loaded: Any, original: Any) -> None:
    """Tensors to the bit, answers but for the order of sums."""
    own, other = loaded.state_dict(), original.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in own.items())
    torch.testing.assert_close(answers(loaded), answers(original), atol=1e-5, rtol=1e-5)


def theirs(kind: str, folder: Path, **arguments: Any) -> Any:
    """Load with transformers, and insist that it found every tensor a place."""
    model_class = getattr(transformers, f"SmolLM3For{kind}")
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **arguments)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


@pytest.mark.parametrize("shard", ["1GB", "4KB"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_what_we_save_transformers_opens(kind: str, shard: str, seed: int, tmp_path: Path) -> None:
    mine, _ = pair(kind, seed, tie_word_embeddings=seed == 1)
    mine.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() is (shard == "4KB")
    assert_same_model(theirs(kind, tmp_path), mine)


@pytest.mark.parametrize("shard", ["1GB", "4KB"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [3, 4])
def test_what_transformers_saves_we_open(kind: str, shard: str, seed: int, tmp_path: Path) -> None:
    mine, reference = pair(kind, seed, tie_word_embeddings=seed == 3)
    reference.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() is (shard == "4KB")
    loaded = OURS[kind].from_pretrained(tmp_path)
    assert_same_model(loaded, reference)
    assert_same_model(loaded, mine)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_travels(dtype: str, tmp_path: Path) -> None:
    mine, reference = pair("CausalLM", 5)
    mine.to(getattr(torch, dtype)).save_pretrained(tmp_path / "ours")
    assert theirs("CausalLM", tmp_path / "ours", dtype="auto").dtype == getattr(torch, dtype)
    reference.to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    back = OURS["CausalLM"].from_pretrained(tmp_path / "theirs")
    assert back.dtype == getattr(torch, dtype)
    assert all(torch.equal(t, reference.state_dict()[name]) for name, t in back.state_dict().items())


def test_a_base_model_goes_both_ways(tmp_path: Path) -> None:
    mine, reference = pair("CausalLM", 6)
    mine.model.save_pretrained(tmp_path / "ours")
    base = transformers.SmolLM3Model.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(t, mine.model.state_dict()[name]) for name, t in base.state_dict().items())
    reference.model.save_pretrained(tmp_path / "theirs")
    loaded = SmolLM3Model.from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(t, mine.model.state_dict()[name]) for name, t in loaded.state_dict().items())


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_head_over_a_language_model_of_transformers(kind: str, tmp_path: Path) -> None:
    mine, reference = pair("CausalLM", 7)
    reference.save_pretrained(tmp_path)
    loaded = OURS[kind].from_pretrained(tmp_path, num_labels=3)
    body = loaded.base_model.state_dict()
    assert all(torch.equal(tensor, mine.model.state_dict()[name]) for name, tensor in body.items())
    loaded.save_pretrained(tmp_path / "head")
    assert_same_model(theirs(kind, tmp_path / "head"), loaded)


def _rope(config: dict[str, Any]) -> Any:
    return config["rope_parameters"]


FACTS: list[Callable[[dict[str, Any]], Any]] = [
    _rope,
    lambda config: config["architectures"],
    lambda config: config["model_type"],
    lambda config: config["dtype"],
    lambda config: config["no_rope_layers"],
    lambda config: config["tie_word_embeddings"],
]


def test_the_config_is_the_one_transformers_writes(tmp_path: Path) -> None:
    mine, reference = pair("SequenceClassification", 8)
    mine.save_pretrained(tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    ours, their = (json.loads((tmp_path / side / "config.json").read_text()) for side in ("ours", "theirs"))
    assert [fact(ours) for fact in FACTS] == [fact(their) for fact in FACTS]
    assert (ours["id2label"], ours["label2id"]) == (their["id2label"], their["label2id"])


def test_a_llama_of_transformers_runs_without_nope_layers(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(9)
    llama = transformers.LlamaForCausalLM(config).eval()
    llama.save_pretrained(tmp_path)
    loaded = OURS["CausalLM"].from_pretrained(tmp_path)
    assert loaded.config.no_rope_layers == [1, 1, 1, 1]
    assert_same_model(loaded, llama)
    loaded.save_pretrained(tmp_path / "smollm3")
    assert_same_model(theirs("CausalLM", tmp_path / "smollm3"), llama)


def test_both_count_parameters_and_bytes_alike() -> None:
    for kind in KINDS:
        mine, reference = pair(kind, 10)
        assert mine.num_parameters() == reference.num_parameters()
        mine.base_model.embed_tokens.weight.requires_grad_(False)
        reference.base_model.embed_tokens.weight.requires_grad_(False)
        assert mine.num_parameters(only_trainable=True) == reference.num_parameters(only_trainable=True)
        assert mine.get_memory_footprint(return_buffers=False) == reference.get_memory_footprint(
            return_buffers=False
        )
        assert mine.dtype == reference.dtype
        assert mine.device == reference.device
