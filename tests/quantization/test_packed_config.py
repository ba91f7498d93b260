"""PackedConfig: what is accepted, what is stored, what is refused in one line."""

from typing import Any

import pytest

from smollm3 import BitsAndBytesConfig, PackedConfig
from smollm3.errors import ConfigError, ParameterError
from smollm3.quantization.packed_config import GROUP_SIZES, SCHEMES, as_packed_config
from smollm3.quantization.quantizer import choose_quantizer


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("head", [*SCHEMES, None])
def test_a_config_survives_being_stored(scheme: str, group_size: int, head: str | None) -> None:
    for symmetric in (True, False) if "int4" in (scheme, head) else (True,):
        config = PackedConfig(scheme, group_size, symmetric, head)
        stored = config.to_dict()
        assert stored["quant_method"] == "smollm3"
        assert PackedConfig.from_dict(stored) == config
        assert as_packed_config(stored) == config


def test_a_schemes_name_is_its_config_with_an_int8_head() -> None:
    assert as_packed_config("int4") == PackedConfig("int4", group_size=64, symmetric=True, head="int8")
    assert as_packed_config("nf4") == PackedConfig("nf4")


def test_configs_of_other_schemes_are_left_alone() -> None:
    for other in (
        None,
        BitsAndBytesConfig(load_in_4bit=True),
        {"load_in_4bit": True},
        {"quant_method": "gptq"},
    ):
        assert as_packed_config(other) is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"scheme": "int3"}, "scheme='int3': give one of int4, int6, int8, nf4"),
    ({"scheme": "int4", "group_size": 48}, "group_size=48: give one of 32, 64, 128"),
    ({"scheme": "int4", "group_size": True}, "group_size=True"),
    ({"scheme": "int4", "group_size": 64.0}, "group_size=64.0"),
    ({"scheme": "int4", "symmetric": 1}, "symmetric=1: give one of True, False"),
    ({"scheme": "int4", "head": "bf16"}, "head='bf16': give one of int4, int6, int8, nf4, None"),
    ({"scheme": "nf4", "symmetric": False}, "nothing to nf4: leave it out"),
    ({"scheme": ["int4"]}, "scheme=['int4']"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_wrong_fields_are_refused_in_one_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError) as asked:
        PackedConfig(**fields)
    with pytest.raises(ConfigError) as stored:
        PackedConfig.from_dict({"quant_method": "smollm3", **fields})
    for caught in (asked, stored):
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2 and this version reads 1"),
        ({"bits": 4}, "unknown field 'bits'"),
        ({"scheme": None}, "scheme=None"),
    ],
    ids=str,
)
def test_damaged_dicts_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        as_packed_config(PackedConfig("int8").to_dict() | change)
    assert words in str(caught.value)


def test_a_dict_without_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="lacks scheme: give one of int4, int6, int8, nf4"):
        as_packed_config({"quant_method": "smollm3"})


def test_what_is_stored_cannot_become_something_else() -> None:
    stored = PackedConfig("int4").to_dict()
    assert choose_quantizer(stored, "int4") is not None
    for asked in ("int8", PackedConfig("int4", 32), BitsAndBytesConfig(load_in_4bit=True)):
        with pytest.raises(ParameterError, match="quantised already"):
            choose_quantizer(stored, asked)
    with pytest.raises(ParameterError, match="quantised already"):
        choose_quantizer(BitsAndBytesConfig(load_in_4bit=True).to_dict(), "int4")
    with pytest.raises(ParameterError, match="quantization_config='int5': give one of"):
        choose_quantizer(None, "int5")
