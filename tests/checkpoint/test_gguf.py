"""GGUF files as checkpoints: names, rows, block types and the config in the metadata."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_blocks import BLOCKS
from gguf_files import STRING, RawGGUF, entry, string, tensor, write_config, write_gguf
from tiny_models import tiny_config, tiny_model

from smollm3.checkpoint import gguf as gguf_module
from smollm3.checkpoint.gguf import GGUFCheckpoint, read_metadata
from smollm3.errors import CheckpointError
from smollm3.model.config import SmolLM3Config
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.ops.rotary import inv_freq


def make(path: Path, *, changes: dict[str, Any] | None = None, **arguments: Any) -> GGUFCheckpoint:
    """A tiny random model in a file, opened."""
    model = tiny_model(SmolLM3ForCausalLM, **(changes or {}))
    return GGUFCheckpoint(write_gguf(path / "x.gguf", model.config, model.state_dict(), **arguments))


# Weights


def test_f32_weights_come_back_exactly_with_their_rows_in_order(tmp_path: Path) -> None:
    model = tiny_model(SmolLM3ForCausalLM, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "x.gguf", model.config, model.state_dict()))
    assert set(checkpoint.names()) == set(model.state_dict())
    for name, expected in model.state_dict().items():
        assert torch.equal(checkpoint.load(name), expected), name
        assert checkpoint.tensor_info(name) == (tuple(expected.shape), torch.float32)


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision_stays_as_it_is_stored(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(SmolLM3ForCausalLM)
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "x.gguf", model.config, model.state_dict(), kind=kind))
    for name in checkpoint.names():
        expected = model.state_dict()[name]
        expected = expected.to(dtype) if expected.dim() == 2 else expected
        assert torch.equal(checkpoint.load(name), expected), name
    assert checkpoint.stored_dtype == dtype
    name = "model.layers.0.mlp.up_proj.weight"
    assert checkpoint.load(name).data_ptr() == checkpoint.load(name).data_ptr(), "must share the file's pages"


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("chunk", [512, 2**18])
def test_every_block_type_gives_the_floats_of_its_definition(
    kind: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_module, "_CHUNK", chunk)
    block_size, pack = BLOCKS[kind]
    rows, columns = 10, 2 * 256
    packed, floats = pack(np.random.default_rng(0), rows * columns // block_size)
    config = tiny_config(vocab_size=rows, hidden_size=columns, num_hidden_layers=1, pad_token_id=None)
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    write_config(writer, config)
    writer.add_tensor("token_embd.weight", packed.reshape(rows, -1), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFCheckpoint(path) as checkpoint:
        loaded = checkpoint.load("model.embed_tokens.weight")
        rounded = checkpoint.load("model.embed_tokens.weight", torch.bfloat16)
        assert checkpoint.stored_dtype == torch.bfloat16
    expected = torch.from_numpy(floats.astype(np.float32)).view(rows, columns)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(rounded, loaded.to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantized_weights_are_near_the_original_row_by_row(kind: str, tmp_path: Path) -> None:
    model = tiny_model(SmolLM3ForCausalLM, intermediate_size=64)
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "x.gguf", model.config, model.state_dict(), kind=kind))
    steps = {"Q8_0": 127, "Q4_0": 7, "Q4_1": 15}[kind]
    for name in checkpoint.names():
        expected = model.state_dict()[name]
        if expected.dim() == 2:
            error = (checkpoint.load(name) - expected).abs().amax(1)
            assert (error <= 2.1 * expected.abs().amax(1) / steps).all(), name


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    raw = RawGGUF(
        tensors=[tensor("token_embd.weight", (256, 1), int(GGMLQuantizationType.IQ2_XS))], data=bytes(96)
    )
    with pytest.raises(CheckpointError, match="IQ2_XS"):
        GGUFCheckpoint(raw.write(tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    "name",
    ["blk.0.ffn_gate_exps.weight", "blk.00.attn_q.weight", "blk.x.attn_q.weight", "vision.weight", "output"],
)
def test_tensors_of_other_models_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=name):
        GGUFCheckpoint(RawGGUF(tensors=[tensor(name, (4, 2))]).write(tmp_path / "x.gguf"))


def test_tensors_outlive_the_checkpoint_and_never_change_the_file(tmp_path: Path) -> None:
    with make(tmp_path) as checkpoint:
        embedding = checkpoint.load("model.embed_tokens.weight")
    before = (tmp_path / "x.gguf").read_bytes()
    embedding.zero_()
    assert embedding.sum() == 0
    assert (tmp_path / "x.gguf").read_bytes() == before


# Config


def test_the_config_of_a_smollm3_file(tmp_path: Path) -> None:
    checkpoint = make(
        tmp_path,
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__eos_token_id=2,
        tokenizer__ggml__padding_token_id=0,
    )
    config = SmolLM3Config.from_dict(checkpoint.config)
    named = {"bos_token_id": 1, "eos_token_id": 2, "architectures": ["SmolLM3ForCausalLM"]}
    assert config == tiny_config(**named, initializer_range=0.02)
    assert config.no_rope_layers == [1, 1, 1, 0]
    assert config.rms_norm_eps == 1e-6, "not 9.999999974752427e-07"


def test_a_llama_file_has_no_nope_layers(tmp_path: Path) -> None:
    config = SmolLM3Config.from_dict(make(tmp_path, architecture="llama").config)
    assert config.no_rope_layers == [1, 1, 1, 1]


def test_untied_output_biases_and_wide_heads_are_seen(tmp_path: Path) -> None:
    changes = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "head_dim": 16}
    config = SmolLM3Config.from_dict(make(tmp_path, changes=changes).config)
    assert not config.tie_word_embeddings
    assert config.attention_bias
    assert config.mlp_bias
    assert config.head_dim == 16


def test_yarn_keys_become_rope_scaling(tmp_path: Path) -> None:
    checkpoint = make(
        tmp_path,
        ARCH__rope__scaling__type="yarn",
        ARCH__rope__scaling__factor=2.0,
        ARCH__rope__scaling__original_context_length=256,
        ARCH__rope__scaling__yarn_beta_fast=16.0,
        ARCH__rope__scaling__attn_factor=0.5,
    )
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 16.0,
        "attention_factor": 0.5 * (0.1 * math.log(2) + 1),
    }
    keys = {"type": "yarn", "factor": 2.0, "yarn_attn_factor": 1.25}
    scaling = make(tmp_path, **{f"ARCH__rope__scaling__{key}": value for key, value in keys.items()})
    assert scaling.config["rope_scaling"]["attention_factor"] == 1.25
    assert scaling.config["rope_scaling"]["original_max_position_embeddings"] == 512, "the context's length"


@pytest.mark.parametrize("key", ["ARCH__rope__scaling__factor", "ARCH__rope__scale_linear"])
def test_linear_scaling_under_both_its_keys(key: str, tmp_path: Path) -> None:
    assert make(tmp_path, **{key: 4.0}).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"type": "longrope", "factor": 2.0}, "longrope"),
        ({"type": "yarn", "factor": 2.0, "yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ({"type": "yarn", "factor": 2.0, "yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ({"type": "yarn", "factor": math.nan}, "factor"),
        ({"type": "yarn", "factor": 2.0, "original_context_length": 0}, "original_context_length"),
    ],
)
def test_scalings_that_cannot_be_kept_are_refused(keys: dict[str, Any], named: str, tmp_path: Path) -> None:
    checkpoint = make(tmp_path, **{f"ARCH__rope__scaling__{key}": value for key, value in keys.items()})
    with pytest.raises(CheckpointError, match=named):
        _ = checkpoint.config


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequencies_stored_as_a_tensor_become_llama3_scaling(factor: float, tmp_path: Path) -> None:
    changes = {
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rope_theta": 500_000.0,
        "hidden_size": 128,
    }
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, _ = inv_freq(
        {"rope_type": "default", "rope_theta": 500_000.0}, 128, None, max_position_embeddings=9000
    )
    scaled, _ = inv_freq(parameters, 128, None, max_position_embeddings=9000)
    stored = (plain / scaled).numpy()
    checkpoint = make(
        tmp_path, architecture="llama", changes=changes, extra_tensors={"rope_freqs.weight": stored}
    )
    assert SmolLM3Config.from_dict(checkpoint.config).rope_parameters == parameters
    assert "rope_freqs.weight" not in checkpoint.names()


def test_stored_frequencies_that_are_not_llama3s_are_refused(tmp_path: Path) -> None:
    strange = {"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)}
    with pytest.raises(CheckpointError, match="rope_freqs"):
        _ = make(tmp_path, extra_tensors=strange).config
    ones = {"rope_freqs.weight": np.ones(4, np.float32)}
    assert "rope_scaling" not in make(tmp_path, extra_tensors=ones).config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 2**32 - 1),  # would be a list of 2**32 layers
        ("block_count", "4"),
        ("block_count", [4, 4]),
        ("embedding_length", 0),
        ("attention.head_count", 0),
        ("attention.head_count_kv", "2"),
        ("context_length", -1.0),
        ("rope.freq_base", math.inf),
        ("rope.dimension_count", 4),
        ("attention.value_length", 4),
        ("attention.layer_norm_rms_epsilon", "small"),
    ],
)
def test_metadata_that_makes_no_sense_names_its_key(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    model = tiny_model(SmolLM3ForCausalLM, num_hidden_layers=1)
    plain = gguf.GGUFWriter.add_key_value

    def replaced(self: Any, name: str, old: Any, *rest: Any) -> None:
        if name == f"smollm3.{key}":
            kind = {str: "STRING", int: "UINT32", float: "FLOAT32", list: "ARRAY"}[type(value)]
            return plain(self, name, value, gguf.GGUFValueType[kind])
        return plain(self, name, old, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_key_value", replaced)
        write_gguf(path, model.config, model.state_dict())
    with pytest.raises(CheckpointError, match=key) as caught:
        _ = GGUFCheckpoint(path).config
    assert "\n" not in str(caught.value)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    path = RawGGUF().write(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=r"llama\.block_count"):
        _ = GGUFCheckpoint(path).config


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    raw = RawGGUF(entries=[entry("general.architecture", STRING, string("qwen3moe"))])
    with pytest.raises(CheckpointError, match="qwen3moe"):
        GGUFCheckpoint(raw.write(tmp_path / "x.gguf"))
    with pytest.raises(CheckpointError, match="None"):
        GGUFCheckpoint(RawGGUF(entries=[]).write(tmp_path / "x.gguf"))


def test_a_file_without_embedding_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="token_embd"):
        _ = GGUFCheckpoint(
            RawGGUF(tensors=[tensor("output_norm.weight", (8,))]).write(tmp_path / "x.gguf")
        ).config


def test_metadata_feeds_the_tokenizer(small_model: Path) -> None:
    metadata = read_metadata(small_model)
    assert len(metadata["tokenizer.ggml.tokens"]) == 49152
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert "<|im_start|>" in metadata["tokenizer.chat_template"]
