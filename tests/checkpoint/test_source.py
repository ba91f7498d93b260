"""What is opened as a checkpoint, and what is refused: pickles first of all (security cases 1 to 6)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import RawGGUF, write_gguf
from safetensors.torch import save_file
from tiny_models import tiny_model

import smollm3
from smollm3 import SmolLM3ForCausalLM
from smollm3.checkpoint.source import open_checkpoint
from smollm3.errors import CheckpointError

PACKAGE = Path(smollm3.__file__).parent


class Trap:
    """Unpickling this leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def pickled(path: Path, mark: Path) -> None:
    torch.save({"model.embed_tokens.weight": Trap(mark)}, path)


def folder_with_config(folder: Path) -> Path:
    config = tiny_model(SmolLM3ForCausalLM).config
    (folder / "config.json").write_text(config.to_json_string())
    return folder


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        SmolLM3ForCausalLM.from_pretrained(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Pickles


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl", "consolidated.00.pth"],
)
def test_a_folder_with_pickles_only_is_refused_and_nothing_is_run(name: str, tmp_path: Path) -> None:
    pickled(folder_with_config(tmp_path) / name, tmp_path / "mark")
    message = refused(tmp_path)
    assert name in message
    assert "pickle" in message
    assert "safetensors" in message
    assert not (tmp_path / "mark").exists()
    torch.load(tmp_path / name, weights_only=False)
    assert (tmp_path / "mark").exists(), "the trap must be one"


def test_a_pickle_given_by_its_path_is_refused(tmp_path: Path) -> None:
    pickled(tmp_path / "pytorch_model.bin", tmp_path / "mark")
    assert "pickle" in refused(tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.gguf")
    assert "no GGUF" in refused(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").rename(tmp_path / "model.safetensors")
    refused(folder_with_config(tmp_path))
    assert not (tmp_path / "mark").exists()


def test_an_index_of_pickles_is_refused(tmp_path: Path) -> None:
    name = "pytorch_model-00001-of-00001.bin"
    pickled(folder_with_config(tmp_path) / name, tmp_path / "mark")
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "pickle" in refused(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "safetensors" in refused(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_pickles_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    model = tiny_model(SmolLM3ForCausalLM)
    model.save_pretrained(tmp_path)
    for name in ("pytorch_model.bin", "training_args.bin", "rng_state.pth", "optimizer.pt"):
        pickled(tmp_path / name, tmp_path / "mark")
    loaded = SmolLM3ForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert not (tmp_path / "mark").exists()


def test_nothing_in_the_package_unpickles_or_runs_a_checkpoints_code() -> None:
    forbidden = re.compile(
        r"\btorch\.load\b|\bc?[pP]ickle\.|\bimport (c?pickle|dill|joblib|cloudpickle|marshal|shelve)\b"
        r"|allow_pickle|\bweights_only\b|spec_from_file_location|import_module\((?!_MODULE_OF|\")|\brunpy\b"
    )
    hits = [
        f"{path.relative_to(PACKAGE)}: {match.group()}"
        for path in PACKAGE.rglob("*.py")
        for match in forbidden.finditer(path.read_text())
    ]
    assert not hits


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_fields_that_would_choose_code_do_nothing(file: str, tmp_path: Path) -> None:
    tiny_model(SmolLM3ForCausalLM).save_pretrained(tmp_path)
    path = tmp_path / file
    evil = {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        "trust_remote_code": True,
        "_attn_implementation_internal": "evil/kernel",
        "custom_generate": "evil/generate",
    }
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(
        json.dumps({**known, **(evil if file == "config.json" else {"auto_map": evil["auto_map"]})})
    )
    model = SmolLM3ForCausalLM.from_pretrained(tmp_path)
    assert model.attn_implementation == "sdpa"
    assert not (tmp_path / "mark").exists()


# Other formats, parts of checkpoints, things that are none


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.onnx", "ONNX"),
        ("flax_model.msgpack", "Flax"),
        ("tf_model.h5", "TensorFlow"),
        ("openvino_model.xml", "OpenVINO"),
        ("model.Q4_K_M.gguf", r"model\.Q4_K_M\.gguf"),
    ],
)
def test_other_formats_are_named(name: str, said: str, tmp_path: Path) -> None:
    (folder_with_config(tmp_path) / name).write_bytes(b"weights")
    assert re.search(said, refused(tmp_path))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert "model.safetensors" in refused(folder_with_config(tmp_path))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config["num_hidden_layers"] == 4, "a config needs no weights"


def test_an_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"base_model.lora_A.weight": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    assert "adapter" in refused(tmp_path)


def test_folders_without_config(tmp_path: Path) -> None:
    assert "empty" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "config.json" in refused(tmp_path)


def test_one_shard_given_by_its_path_points_to_its_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert str(tmp_path) in refused(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"hidden_size": NaN}', '{"a": 1, "a": 2}', "[" * 100_000]
)
def test_a_config_that_is_no_json_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refused(tmp_path)


def test_a_config_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**30)
    assert "larger" in refused(tmp_path)


# GGUF in folders and by path


def test_a_folder_with_one_gguf_is_that_model(tmp_path: Path) -> None:
    model = tiny_model(SmolLM3ForCausalLM)
    path = write_gguf(tmp_path / "one.gguf", model.config, model.state_dict())
    for where in (tmp_path, path):
        with open_checkpoint(where) as checkpoint:
            assert checkpoint.path == path
            assert checkpoint.generation_config is None
            assert checkpoint.stored_dtype == torch.float32
    RawGGUF().write(tmp_path / "two.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF.*one\.gguf"):
        open_checkpoint(tmp_path)


def test_a_gguf_under_any_name_is_told_by_its_content(tmp_path: Path) -> None:
    model = tiny_model(SmolLM3ForCausalLM)
    path = write_gguf(tmp_path / "blob", model.config, model.state_dict())
    with open_checkpoint(path) as checkpoint:
        assert "model.norm.weight" in checkpoint.names()


# A folder, read


def test_configs_dtype_and_order_of_a_folder(tmp_path: Path) -> None:
    tensors = {"z": torch.ones(2, dtype=torch.int8), "m": torch.ones(2, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_size": 7}')
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == {"hidden_size": 7}
        assert checkpoint.generation_config == {"temperature": 0.6}
        assert checkpoint.stored_dtype == torch.bfloat16, "the first floating-point one"
        begins = [checkpoint.load(name).data_ptr() for name in checkpoint.names()]
        assert begins == sorted(begins), "in the order of the file"
        assert checkpoint.tensor_info("m") == ((2,), torch.bfloat16)


def test_a_folder_of_integers_has_no_dtype_of_its_own(tmp_path: Path) -> None:
    save_file({"z": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="dtype"):
        _ = checkpoint.stored_dtype
