"""save_pretrained: what it writes, over what, and what comes back; what a model says about itself."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_models import MODEL_CLASSES, tiny_config, tiny_model

import smollm3.checkpoint.safetensors as writer
from smollm3.errors import CheckpointError, ParameterError
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.smollm3 import SmolLM3ForCausalLM, SmolLM3Model


def causal(**changes: Any) -> SmolLM3ForCausalLM:
    return tiny_model(SmolLM3ForCausalLM, **changes)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def stored_names(folder: Path) -> list[str]:
    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names += list(file.keys())
            assert file.metadata() == {"format": "pt"}
    return names


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_class", MODEL_CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shard", ["5GB", "20KB", 1])
def test_every_class_comes_back(model_class: Any, shard: Any, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(model_class, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "a" / "b", max_shard_size=shard)
    loaded = model_class.from_pretrained(tmp_path / "a" / "b")
    assert_same_weights(loaded, model)
    names = stored_names(tmp_path / "a" / "b")
    assert len(names) == len(set(names)) == len(list(model.parameters()))
    assert loaded.config.to_dict() == {
        **model.config.to_dict(),
        "architectures": [model_class.__name__],
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def test_the_files_of_a_whole_and_of_a_sharded_save(tmp_path: Path) -> None:
    model = causal()
    model.save_pretrained(tmp_path)
    assert listing(tmp_path) == {"config.json", "generation_config.json", "model.safetensors"}
    assert "lm_head.weight" not in stored_names(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert listing(tmp_path) == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        *shards,
    }
    assert index["metadata"]["total_size"] == model.get_memory_footprint(return_buffers=False)
    assert sorted(index["weight_map"]) == sorted(stored_names(tmp_path))
    sizes = {name: (tmp_path / name).stat().st_size for name in shards}
    embedding = index["weight_map"]["model.embed_tokens.weight"]  # 51 kB, and alone in its shard
    assert all(size < 45_000 for name, size in sizes.items() if name != embedding)


def test_a_save_over_an_older_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    causal(seed=1).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"another's")
    for shard in ("40KB", "5GB", "10KB"):
        newer = causal(seed=len(shard))
        newer.save_pretrained(tmp_path, max_shard_size=shard)
        assert_same_weights(SmolLM3ForCausalLM.from_pretrained(tmp_path), newer)
        weights = {name for name in listing(tmp_path) if name.startswith("model")}
        assert ("model.safetensors" in weights) is (shard == "5GB")
        assert len({name[-17:] for name in weights if "-of-" in name}) in (0, 1)
    assert {"tokenizer.json", "adapter_model.safetensors"} < listing(tmp_path)
    assert not [name for name in listing(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_into_the_folder_it_was_loaded_from(shard: str, tmp_path: Path) -> None:
    original = causal()
    original.save_pretrained(tmp_path, max_shard_size="30KB")
    model = SmolLM3ForCausalLM.from_pretrained(tmp_path)  # its tensors are the pages of these files
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    again = SmolLM3ForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(again, model)
    assert torch.equal(again.model.norm.weight, original.model.norm.weight + 1)
    assert torch.equal(again.lm_head.weight, original.lm_head.weight)


def test_a_save_that_breaks_off_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = causal(seed=1)
    older.save_pretrained(tmp_path)
    before = listing(tmp_path)

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        causal(seed=2).save_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert listing(tmp_path) == before
    assert_same_weights(SmolLM3ForCausalLM.from_pretrained(tmp_path), older)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ParameterError, match="file is a file: give a folder"):
        causal().save_pretrained(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"cannot be written to .Not a directory"):
        causal().save_pretrained(tmp_path / "file" / "below")


@pytest.mark.parametrize("size", ["", "5 parsecs", "GB", "-1GB", 0, -5, 1.5, True, None, "0GB", "1.2.3GB"])
def test_a_shard_size_that_is_none(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"max_shard_size=.*: give bytes or a text such as '5GB'"):
        causal().save_pretrained(tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2KiB", 2048), ("1gib", 2**30), ("700", 700), ("9B", 9)],
)
def test_a_shard_size_as_text(
    size: str, num_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(
        "smollm3.model.pretrained.save_shards",
        lambda folder, tensors, limit, metadata: (
            limits.append(limit),
            writer.save_shards(folder, tensors, limit, metadata),
        ),
    )
    causal().save_pretrained(tmp_path, max_shard_size=size)
    assert limits == [num_bytes]


def test_a_pickle_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="safe_serialization=False would write a pickle"):
        causal().save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


# Configs


def test_generation_settings_travel(tmp_path: Path) -> None:
    model = causal()
    model.generation_config = GenerationConfig(temperature=0.25, do_sample=True, eos_token_id=[3, 7])
    model.save_pretrained(tmp_path)
    loaded = SmolLM3ForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config == model.generation_config
    (tmp_path / "generation_config.json").unlink()
    assert SmolLM3ForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == 3
    SmolLM3Model.from_pretrained(tmp_path).save_pretrained(tmp_path / "base")
    assert "generation_config.json" not in listing(tmp_path / "base")


def test_the_dtype_that_is_saved_is_the_models(tmp_path: Path) -> None:
    causal().save_pretrained(tmp_path)
    SmolLM3ForCausalLM.from_pretrained(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert SmolLM3ForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_a_subclass_is_saved_as_what_others_know(tmp_path: Path) -> None:
    class Mine(SmolLM3ForCausalLM):
        pass

    Mine(tiny_config()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["SmolLM3ForCausalLM"]


def test_unknown_fields_of_the_file_are_kept(tmp_path: Path) -> None:
    causal().save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, "max_window_layers": 28, "note": ["a", 1]}))
    SmolLM3ForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (again["max_window_layers"], again["note"]) == (28, ["a", 1])


# Other values, and ties


def test_a_state_dict_in_place_of_the_models_own(tmp_path: Path) -> None:
    model = causal()
    values = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=values)
    loaded = SmolLM3ForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in values.items())
    del values["lm_head.weight"]  # the other name of a tied pair
    model.save_pretrained(tmp_path, state_dict=values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("model.norm.weight"), "state_dict lacks 'model.norm.weight'"),
        (lambda values: values.update(odd=torch.ones(1)), "state_dict has the unknown 'odd'"),
        (
            lambda values: values.update({"model.norm.weight": torch.ones(3)}),
            r"'model.norm.weight' in the shape \(3,\)",
        ),
    ],
)
def test_a_state_dict_of_another_model(change: Any, message: str, tmp_path: Path) -> None:
    values = causal().state_dict()
    change(values)
    with pytest.raises(ParameterError, match=message):
        causal().save_pretrained(tmp_path / "new", state_dict=values)
    assert not (tmp_path / "new").exists()


def test_a_head_that_came_loose_is_not_lost_in_silence(tmp_path: Path) -> None:
    model = causal()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(400, 32))
    with pytest.raises(
        ParameterError, match=r"lm_head.weight and model.embed_tokens.weight differ.*tie_weights"
    ):
        model.save_pretrained(tmp_path)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    assert not SmolLM3ForCausalLM.from_pretrained(tmp_path).lm_head.weight.any()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert_same_weights(SmolLM3ForCausalLM.from_pretrained(tmp_path), causal())


# What a model says about itself


@pytest.mark.parametrize("tied", [True, False])
def test_counts(tied: bool) -> None:
    model = causal(tie_word_embeddings=tied)
    N, FF, V, KV = 32, 48, 400, 16
    layer = 2 * N * N + 2 * N * KV + 3 * N * FF + 2 * N
    head = 0 if tied else V * N
    assert model.num_parameters() == 4 * layer + N + V * N + head
    assert model.num_parameters(exclude_embeddings=True) == 4 * layer + N + head
    model.model.embed_tokens.weight.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 4 * layer + N + head
    num_bytes = 4 * model.num_parameters()
    assert model.get_memory_footprint(return_buffers=False) == num_bytes
    assert model.get_memory_footprint() == num_bytes + 4 * 4  # the frequencies of 8 / 2 angles
    assert model.bfloat16().get_memory_footprint(return_buffers=False) == num_bytes // 2


def test_dtype_and_device() -> None:
    model = causal()
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert model.half().dtype == torch.float16
    assert model.to(dtype=torch.float64).dtype == torch.float64
    assert model.to("cpu").float() is model
    assert model.dtype == torch.float32
    assert model.to("meta").device == torch.device("meta")


def test_plain_weights_are_never_saved_as_quantised(tmp_path: Path) -> None:
    config = tiny_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    SmolLM3ForCausalLM(config).save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert type(SmolLM3ForCausalLM.from_pretrained(tmp_path).lm_head) is torch.nn.Linear
