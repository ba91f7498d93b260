"""What a config accepts, derives, refuses and writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from smollm3.errors import ConfigError
from smollm3.model.config import SmolLM3Config

TINY: dict[str, Any] = {
    "model_type": "smollm3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 5e6,
}
YARN = {"factor": 2.0, "original_max_position_embeddings": 65536, "type": "yarn"}
# The released model's config.json, as far as public sources tell.
RELEASED: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128012,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pad_token_id": 128004,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0.dev0",
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": 128256,
}


def tiny(**fields: Any) -> SmolLM3Config:
    return SmolLM3Config.from_dict({**TINY, **fields})


def test_defaults_are_transformers() -> None:
    config = SmolLM3Config()
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 2e6}
    assert config.head_dim == 128
    assert config.no_rope_layers == [1, 1, 1, 0] * 9
    assert config.layer_types == ["full_attention"] * 36
    assert [config.use_rope(i) for i in (0, 2, 3, 35)] == [True, True, False, False]
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (128004, 128000, 128001)
    assert config.num_labels == 2


def test_the_released_config() -> None:
    config = SmolLM3Config.from_dict(RELEASED)
    assert config.rope_theta == 5e6
    assert config.eos_token_id == 128012
    assert config.dtype == config.torch_dtype == "bfloat16"
    assert config.extra == {"max_window_layers": 28, "pretraining_tp": 2}
    long = SmolLM3Config.from_dict(RELEASED, rope_scaling=YARN, max_position_embeddings=131072)
    assert long.rope_parameters == {
        "rope_type": "yarn",
        "rope_theta": 5e6,
        "factor": 2.0,
        "original_max_position_embeddings": 65536,
    }


def test_derived_layers() -> None:
    config = tiny(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=7)
    assert config.no_rope_layers == [1, 0, 1, 0]
    assert config.layer_types == ["full_attention", "sliding_attention"] * 2
    assert [config.window(i) for i in range(4)] == [None, 7, None, 7]
    assert tiny(num_key_value_heads=None).num_key_value_heads == 4
    assert tiny(head_dim=20).head_dim == 20
    assert tiny(no_rope_layers=[1, 1, 1, 1, 0, 0]).use_rope(3)  # longer than needed is allowed


def test_default_ids_apply_only_where_the_vocabulary_has_them() -> None:
    config = tiny()
    assert config.pad_token_id is config.bos_token_id is config.eos_token_id is None
    assert tiny(pad_token_id=3, eos_token_id=[1, 2]).eos_token_id == [1, 2]


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 1e5, "rope_scaling": YARN},
        {"rope_theta": 1e5, "rope_scaling": {**YARN, "rope_type": "yarn"}},
        {"rope_theta": 1e5, "rope_parameters": YARN},
        {"rope_theta": None, "rope_parameters": {**YARN, "rope_theta": 1e5}},
        {"rope_theta": None, "rope_scaling": {**YARN, "rope_theta": 1e5}},
        {"rope_theta": 1e5, "rope_scaling": YARN, "rope_parameters": {**YARN, "rope_theta": 1e5}},
    ],
)
def test_rope_spellings_mean_one_thing(spelling: dict[str, Any]) -> None:
    config = tiny(**spelling)
    assert config.rope_parameters == {
        "rope_type": "yarn",
        "rope_theta": 1e5,
        "factor": 2.0,
        "original_max_position_embeddings": 65536,
    }
    assert config.rope_theta == 1e5


def test_a_lost_theta_is_refused_and_can_be_given() -> None:
    lost = {key: value for key, value in TINY.items() if key != "rope_theta"}
    for spelling in (
        {},
        {"rope_scaling": None},
        {"rope_scaling": YARN},
        {"rope_parameters": {"rope_type": "default"}},
    ):
        with pytest.raises(ConfigError, match="lost rope_theta: add it"):
            SmolLM3Config.from_dict({**lost, **spelling})
    assert SmolLM3Config.from_dict(lost, rope_theta=5e6).rope_theta == 5e6
    # Without RoPE layers nothing is lost.
    assert SmolLM3Config.from_dict({**lost, "no_rope_layers": [0] * 4}).no_rope_layers == [0] * 4


def test_a_llama_file_reads_as_all_rope() -> None:
    config = SmolLM3Config.from_dict(
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rope_theta": 100000,
            "rope_interleaved": False,
            "tie_word_embeddings": True,
        }
    )
    assert config.no_rope_layers == [1] * 30
    assert config.architectures == ["SmolLM3ForCausalLM"]
    assert config.rope_theta == 100000
    assert config.to_dict()["model_type"] == "smollm3"
    bare = SmolLM3Config.from_dict({"model_type": "llama", "num_hidden_layers": 2})
    assert (bare.rope_theta, bare.tie_word_embeddings, bare.num_key_value_heads) == (10000.0, False, 32)
    with pytest.raises(ConfigError, match="model_type 'qwen2' cannot be run"):
        SmolLM3Config.from_dict({"model_type": "qwen2"})


HOSTILE = {
    "_attn_implementation_internal": "somebody/kernel",
    "_attn_implementation": "somebody/kernel",
    "attn_implementation": "somebody/kernel",
    "_name_or_path": "somebody/model",
    "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"},
    "trust_remote_code": True,
    "custom_pipelines": {"text-generation": {"impl": "evil.Pipe"}},
    "kernel_config": {"RMSNorm": "somebody/kernel"},
    "use_kernels": True,
    "extra": {"attn_implementation": "x"},
}


def test_fields_that_choose_code_are_dropped_and_never_written() -> None:
    config = tiny(**HOSTILE)
    assert config.attn_implementation is None
    assert config.extra == {}
    written = config.to_dict()
    assert not (HOSTILE.keys() & written.keys())
    assert not any(
        hasattr(config, name) for name in ("auto_map", "trust_remote_code", "_attn_implementation")
    )
    assert tiny(**HOSTILE) == tiny()


def test_unknown_fields_are_kept_and_do_nothing() -> None:
    config = tiny(neftune_alpha=5, num_hidden_layerz=9, forward="evil")
    assert config.extra == {"neftune_alpha": 5, "num_hidden_layerz": 9, "forward": "evil"}
    assert config.to_dict()["num_hidden_layerz"] == 9
    assert config.num_hidden_layers == 4
    with pytest.raises(ConfigError, match="'num_hidden_layerz' is not a field"):
        SmolLM3Config.from_dict(TINY, num_hidden_layerz=9)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": "32"}, "hidden_size must be int, not '32'"),
    ({"hidden_size": 32.5}, "hidden_size must be int"),
    ({"num_hidden_layers": True}, "num_hidden_layers must be int"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be positive"),
    ({"vocab_size": -1}, "vocab_size must be positive"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be positive"),
    ({"rms_norm_eps": None}, "rms_norm_eps must be float"),
    ({"no_rope_layers": "1110"}, "no_rope_layers must be"),
    ({"no_rope_layers": [1, 1]}, "no_rope_layers has 2 entries for num_hidden_layers=4"),
    ({"no_rope_layers": [1, 2, 0, 1]}, "may hold only 1 .* and 0"),
    ({"no_rope_layer_interval": 0}, "no_rope_layer_interval must be positive"),
    ({"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
    ({"layer_types": ["linear_attention"] * 4}, "'linear_attention' is not supported: use one of"),
    ({"layer_types": ["sliding_attention"] * 4}, "use_sliding_window is false"),
    ({"use_sliding_window": True}, "sliding_window is null"),
    ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window must be positive"),
    ({"num_attention_heads": 5}, "hidden_size 32 does not divide"),
    ({"num_key_value_heads": 3}, "does not divide by num_key_value_heads 3"),
    ({"head_dim": 7}, "head_dim 7 is odd"),
    ({"hidden_act": "swiglu"}, "hidden_act is 'swiglu': use one of silu"),
    ({"pad_token_id": 64}, "pad_token_id 64 lies outside the vocabulary of 64"),
    ({"eos_token_id": [1, -1]}, "eos_token_id -1 lies outside"),
    ({"attention_dropout": 1.0}, "attention_dropout must be at least 0 and below 1"),
    ({"initializer_range": -0.1}, "initializer_range must lie"),
    ({"dtype": "float32", "torch_dtype": "bfloat16"}, "disagree: keep one"),
    ({"torch_dtype": "int4"}, "dtype is 'int4'"),
    ({"rope_theta": 0}, "rope_theta must be a positive number"),
    ({"rope_theta": float("inf")}, "rope_theta must be a positive number"),
    (
        {"rope_parameters": {"rope_theta": 1e4}},
        "rope_theta says rope_theta=5000000.0, but .* 10000.0: keep one",
    ),
    ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported: use one of default"),
    (
        {"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 2}},
        "both rope_type='yarn' and type",
    ),
    ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be at least 1"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor must be a positive number, not '2'"),
    (
        {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
        "greater",
    ),
    ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 32}}, "beta_fast"),
    ({"rope_scaling": "yarn"}, "rope_scaling must be"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one set per layer type"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    ({"num_labels": 3, "id2label": {"0": "a"}}, "num_labels=3, but id2label names 1"),
    ({"num_labels": 1, "problem_type": "single_label_classification"}, "needs num_labels > 1"),
    ({"problem_type": "clustering"}, "problem_type is 'clustering'"),
    ({"id2label": {"zero": "a"}}, "id2label"),
    ({"classifier_pooling": "mean"}, "classifier_pooling is 'mean'"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than any model has"),
    ({"num_labels": 10**9}, "num_labels is 1000000000"),
]


def test_a_llama_file_with_a_billion_layers_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="more than any model has"):
        SmolLM3Config.from_dict({"model_type": "llama", "num_hidden_layers": 10**9})


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_wrong_and_contradictory_fields_get_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tiny(**fields)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_labels() -> None:
    named = tiny(id2label={"0": "no", "1": "yes"})
    assert named.id2label == {0: "no", 1: "yes"}
    assert named.label2id == {"no": 0, "yes": 1}
    assert named.num_labels == 2
    assert tiny(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert tiny(id2label={"0": "a", "1": "b", "2": "c"}).num_labels == 3


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rope_scaling": YARN, "sliding_window": 4, "use_sliding_window": True},
        {
            "head_dim": 16,
            "dtype": "float16",
            "classifier_dropout": 0.2,
            "id2label": {"0": "x"},
            "novel": [1, {"a": 2}],
        },
        {"quantization_config": {"load_in_4bit": True}, "eos_token_id": [3, 4], "pad_token_id": 1},
    ],
)
def test_what_is_written_reads_back_the_same(fields: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(**fields)
    assert SmolLM3Config.from_dict(config.to_dict()) == config
    path = tmp_path / "config.json"
    path.write_text(config.to_json_string())
    assert SmolLM3Config.from_json_file(path) == config


def test_changing_the_dict_does_not_change_the_config() -> None:
    config = tiny(novel=[1])
    written = config.to_dict()
    written["no_rope_layers"][0] = 9
    written["novel"].append(2)
    assert config.no_rope_layers == [1, 1, 1, 0]
    assert config.extra == {"novel": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "one JSON object, not a list"),
        ('{"vocab_size": 1, "vocab_size": 2}', "key 'vocab_size' stands there twice"),
        ("[" * 100_000, "cannot be read"),
        ("\xff", "cannot be read"),
        (
            json.dumps({**TINY, "num_key_value_heads": 3}),
            "config.json: num_attention_heads 4 does not divide",
        ),
    ],
)
def test_bad_files_get_one_line_with_their_path(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as caught:
        SmolLM3Config.from_json_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is missing"):
        SmolLM3Config.from_json_file(tmp_path / "nothing.json")


def test_overrides_win_over_everything_the_file_says_of_the_same_thing() -> None:
    written = tiny(num_labels=2, dtype="bfloat16", rope_scaling=YARN).to_dict()

    def read(**overrides: Any) -> SmolLM3Config:
        return SmolLM3Config.from_dict(written, **overrides)

    assert read(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert read(id2label={"0": "a", "1": "b", "2": "c"}).label2id == {"a": 0, "b": 1, "c": 2}
    assert read(dtype="float32").torch_dtype == "float32"
    assert read(no_rope_layer_interval=2).no_rope_layers == [1, 0, 1, 0]
    assert read(num_hidden_layers=2).layer_types == ["full_attention"] * 2
    sliding = read(use_sliding_window=True, sliding_window=5, no_rope_layers=[0, 1, 1, 1])
    assert sliding.layer_types == ["sliding_attention", *["full_attention"] * 3]
    yarn = tiny(rope_scaling=YARN).rope_parameters
    assert yarn is not None
    assert read(rope_theta=7.0).rope_parameters == {**yarn, "rope_theta": 7.0}
    linear = read(rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert linear.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e6}
    named = SmolLM3Config.from_dict(tiny(id2label={"0": "no", "1": "yes"}).to_dict(), num_labels=2)
    assert named.id2label == {0: "no", 1: "yes"}
    with pytest.raises(ConfigError, match="rope_scaling must be"):
        SmolLM3Config.from_dict({**TINY, "rope_scaling": "yarn"}, rope_theta=1e4)
