"""Checkpoints written as GGUF files and read again: every weight, the config, nothing half written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import add_value, permute, write_config, write_gguf
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from torch import Tensor

from smollm3.checkpoint import gguf_write as module
from smollm3.checkpoint.gguf import GGUFCheckpoint
from smollm3.checkpoint.gguf_write import Encode, encode_plainly
from smollm3.checkpoint.gguf_write import write_gguf as export
from smollm3.checkpoint.source import open_checkpoint
from smollm3.errors import CheckpointError
from smollm3.model.config import SmolLM3Config
from smollm3.model.heads import SmolLM3ForSequenceClassification
from smollm3.model.smollm3 import SmolLM3ForCausalLM, SmolLM3Model

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
NO_TOKENIZER: Mapping[str, Any] = {"tokenizer.ggml.model": "none"}


def saved(folder: Path, model_class: Any = SmolLM3ForCausalLM, **changes: Any) -> Any:
    """A tiny model, its biases and norms drawn too, written to `folder`."""
    model = tiny_model(model_class, **{**SIZES, **changes})
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model.save_pretrained(folder)
    return model


def exported(folder: Path, kind: str = "f32", encode: Encode = encode_plainly) -> Path:
    """The folder's model in a GGUF file beside it."""
    path = folder.with_name(f"{folder.name}-{kind}.gguf")
    with open_checkpoint(folder) as checkpoint:
        config = SmolLM3Config.from_dict(checkpoint.config).to_dict()
        export(path, checkpoint, config, kind, name="tiny", tokenizer=NO_TOKENIZER, encode=encode)
    return path


def weights_of(path: Path) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.load(name).clone() for name in checkpoint.names()}


SHAPES: dict[str, dict[str, Any]] = {
    "every fourth layer without positions": {},
    "llama": {"no_rope_layers": [1] * 4},
    "biases": {"no_rope_layers": [1] * 4, "attention_bias": True, "mlp_bias": True},
    "untied": {"tie_word_embeddings": False},
    "wide heads": {"head_dim": 24},
    "one key-value head": {"num_key_value_heads": 1},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_float32_file_gives_every_weight_and_the_config_back(shape: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", **SHAPES[shape])
    path = exported(tmp_path / "model")
    expected = {name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}
    if not model.config.tie_word_embeddings:
        expected["lm_head.weight"] = model.lm_head.weight
    found = weights_of(path)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    again = SmolLM3ForCausalLM.from_pretrained(path)
    ids = torch.tensor([[5, 9, 11, 40, 7]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    for field in ("no_rope_layers", "rope_parameters", "head_dim", "rms_norm_eps", "max_position_embeddings"):
        assert getattr(again.config, field) == getattr(model.config, field)


def test_the_file_is_what_the_converters_layout_says(tmp_path: Path) -> None:
    """Against a second writer: names, rows of q and k, types, and metadata."""
    model = saved(tmp_path / "model")
    mine = gguf.GGUFReader(exported(tmp_path / "model"))
    theirs = gguf.GGUFReader(write_gguf(tmp_path / "x.gguf", model.config, model.state_dict()))
    tensors = {tensor.name: tensor for tensor in mine.tensors}
    assert tensors.keys() == {tensor.name for tensor in theirs.tensors}
    for expected in theirs.tensors:
        assert tensors[expected.name].tensor_type == expected.tensor_type
        assert np.array_equal(tensors[expected.name].data, expected.data), expected.name
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert mine.fields[key].contents() == field.contents(), key
    assert mine.fields["general.file_type"].contents() == gguf.LlamaFileType.ALL_F32


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_half_precision_is_a_cast_and_norms_stay_whole(
    kind: str, dtype: torch.dtype, stored: torch.dtype, tmp_path: Path
) -> None:
    model = saved(tmp_path / "model").to(stored)
    model.save_pretrained(tmp_path / "model")
    found = weights_of(exported(tmp_path / "model", kind))
    for name, weight in found.items():
        expected = model.state_dict()[name]
        assert torch.equal(weight, expected.to(dtype) if expected.dim() == 2 else expected.float()), name
        assert weight.dtype == (dtype if expected.dim() == 2 else torch.float32)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_blocks_are_what_the_encoder_made_of_each_row_in_its_place(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path / "model", tie_word_embeddings=False)
    whole = weights_of(exported(tmp_path / "model", kind))
    for name, weight in model.state_dict().items():
        if weight.dim() == 1:
            assert torch.equal(whole[name], weight)
            continue
        on_top = name in ("lm_head.weight", "model.embed_tokens.weight")
        type_ = gguf.GGMLQuantizationType["Q8_0" if on_top else kind.upper()]
        blocks = gguf.quants.quantize(weight.numpy(), type_)
        assert torch.equal(whole[name], torch.from_numpy(gguf.quants.dequantize(blocks, type_))), name
    (tmp_path / f"model-{kind}.gguf").rename(tmp_path / "whole.gguf")
    monkeypatch.setattr(module, "_STRETCH", 16 * 64)
    exported(tmp_path / "model", kind)
    in_stretches = (tmp_path / f"model-{kind}.gguf").read_bytes()
    assert in_stretches == (tmp_path / "whole.gguf").read_bytes()


def test_an_encoder_sees_a_stretch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "model")
    monkeypatch.setattr(module, "_STRETCH", 32 * 64)
    seen: list[int] = []

    def watch(rows: Tensor, type_name: str) -> Any:
        seen.append(rows.numel())
        return encode_plainly(rows, type_name)

    exported(tmp_path / "model", "q8_0", watch)
    assert max(seen) == 32 * 64
    assert sum(seen) == sum(
        x.numel() for x in load_file(tmp_path / "model/model.safetensors").values() if x.dim() == 2
    )


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_blocks_of_the_wanted_type_are_copied(kind: str, tmp_path: Path) -> None:
    """A file whose blocks no encoder would choose: what comes out holds the same bytes."""
    model = tiny_model(SmolLM3ForCausalLM, **SIZES)
    source = tmp_path / "source.gguf"
    writer = gguf.GGUFWriter(source, "smollm3")
    write_config(writer, model.config)
    add_value(writer, "tokenizer.ggml.model", "none")
    rng = np.random.default_rng(0)
    kept: dict[str, Any] = {}
    for name, (theirs, shape, _) in module._expected(model.config.to_dict()).items():
        if len(shape) == 1:
            writer.add_tensor(theirs, np.ones(shape, np.float32))
            continue
        on_top = name == "model.embed_tokens.weight"
        type_ = gguf.GGMLQuantizationType["Q8_0" if on_top else kind.upper()]
        size = gguf.GGML_QUANT_SIZES[type_][1]
        blocks = rng.integers(0, 256, (shape[0], shape[1] // 32, size), np.uint8)
        blocks[..., 1] = 0x21  # a small, ordinary scale
        kept[theirs] = blocks.reshape(shape[0], -1)
        writer.add_tensor(theirs, kept[theirs], raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(exported(source, kind)).tensors}
    for name, blocks in kept.items():
        assert np.array_equal(found[name], blocks), name
    assert not np.array_equal(
        gguf.GGUFReader(exported(source, "f32")).tensors[0].data, found["token_embd.weight"]
    )


def test_other_blocks_become_floats_first(tmp_path: Path) -> None:
    model = tiny_model(SmolLM3ForCausalLM, **SIZES)
    source = write_gguf(tmp_path / "q.gguf", model.config, model.state_dict(), kind="Q4_1")
    floats, exact = weights_of(source), weights_of(exported(source, "f32"))
    rounded = weights_of(exported(source, "q8_0"))
    for name, weight in floats.items():
        assert torch.equal(exact[name], weight), name
        assert torch.allclose(rounded[name], weight, atol=weight.abs().max().item() / 120), name


def test_shards_prefixes_and_old_buffers_are_seen_through(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    plain = exported(tmp_path / "model").read_bytes()
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert exported(tmp_path / "shards").read_bytes() == plain
    base = tiny_model(SmolLM3Model, **SIZES)
    base.load_state_dict(model.model.state_dict())
    base.save_pretrained(tmp_path / "base")
    assert exported(tmp_path / "base").read_bytes() == plain
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    tensors["model.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model/model.safetensors")
    assert exported(tmp_path / "model").read_bytes() == plain


def test_llama3_frequencies_become_a_tensor_that_is_read_back(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    model = saved(tmp_path / "model", no_rope_layers=[1] * 4, rope_scaling=scaling, rope_theta=500_000.0)
    with GGUFCheckpoint(exported(tmp_path / "model")) as checkpoint:
        assert checkpoint.config["rope_scaling"] == scaling
        again = SmolLM3ForCausalLM.from_pretrained(checkpoint.path)
    inv_freq = again.model.rotary_emb.inv_freq
    assert torch.allclose(inv_freq, model.model.rotary_emb.inv_freq, rtol=1e-6)


# What cannot be written


def change(folder: Path, name: str, value: Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors")


UP = "model.layers.1.mlp.up_proj.weight"
WRONG: dict[str, tuple[str, Tensor | None, str, str]] = {
    "missing": (UP, None, "bf16", f"holds no '{UP}'"),
    "shape": (UP, torch.zeros(96, 32), "bf16", "the config asks for floats of shape (96, 64)"),
    "dtype": (UP, torch.zeros(96, 64, dtype=torch.int8), "bf16", "is torch.int8"),
    "stranger": ("model.layers.9.mlp.up_proj.weight", torch.zeros(1), "bf16", "no part of a language model"),
    "infinite in blocks": (
        UP,
        torch.full((96, 64), float("inf")),
        "q8_0",
        f"'{UP}' holds weights that are NaN",
    ),
    "NaN in blocks": (UP, torch.full((96, 64), float("nan")), "q4_0", "use --type bf16"),
    "too large for f16": (UP, torch.full((96, 64), 1e5), "f16", "too large for f16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_damaged_weights_are_named_and_leave_no_file(case: str, tmp_path: Path) -> None:
    name, value, kind, message = WRONG[case]
    saved(tmp_path / "model")
    change(tmp_path / "model", name, value)
    with pytest.raises(CheckpointError) as caught:
        exported(tmp_path / "model", kind)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nan_stays_visible_in_floats(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    change(tmp_path / "model", UP, torch.full((96, 64), float("nan")))
    for kind in ("bf16", "f16", "f32"):
        assert weights_of(exported(tmp_path / "model", kind))[UP].isnan().all()


def test_rows_that_are_no_blocks_and_other_heads_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "odd", intermediate_size=80)
    with pytest.raises(CheckpointError, match="80 columns, which do not divide into the q4_0 blocks of 32"):
        exported(tmp_path / "odd", "q4_0")
    assert exported(tmp_path / "odd", "f16").is_file()
    saved(tmp_path / "classifier", SmolLM3ForSequenceClassification, num_labels=3)
    with pytest.raises(CheckpointError, match=r"'score.weight', which is no part of a language model"):
        exported(tmp_path / "classifier")


def test_a_full_disk_is_one_line_and_an_older_file_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "model")
    path = exported(tmp_path / "model")
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(CheckpointError, match=r"cannot be written .No space left on device"):
        exported(tmp_path / "model")
    assert path.read_bytes() == before
    assert {found.name for found in tmp_path.iterdir()} == {"model", path.name}


def test_the_permutation_is_the_converters(tmp_path: Path) -> None:
    x = torch.arange(48.0).view(24, 2)
    assert torch.equal(module._reordered(x, 3), permute(x, 3))
    assert module._reordered(x, 0) is x
