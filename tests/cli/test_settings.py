"""Settings: values from text, one-line errors, and what they mean for sampling."""

import dataclasses
import math
from typing import Any

import pytest

from smollm3.cli.settings import HELP, NAMES, Settings
from smollm3.errors import ParameterError


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_new_tokens", "12", 12),
        ("max-new-tokens", " 12 ", 12),
        ("temperature", "0.5", 0.5),
        ("temperature", "1", 1.0),
        ("top_k", "0", 0),
        ("seed", "-3", -3),
        ("do_sample", "on", True),
        ("do_sample", "No", False),
        ("thinking", "off", False),
        ("thinking", "default", None),
        ("show_thinking", "false", False),
        ("markdown", "default", True),
        ("stop", r"\n\n", ("\n\n",)),
        ("stop", "none", ()),
        ("max_new_tokens", "default", None),
    ],
)
def test_a_setting_takes_its_value_from_text(name: str, text: str, value: object) -> None:
    changed = Settings(max_new_tokens=5).with_text(name, text)
    assert getattr(changed, name.replace("-", "_")) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temperature", "warm", "give a number"),
        ("temperature", "-1", "temperature=-1.0"),
        ("temperature", "nan", "temperature=nan"),
        ("top_p", "1.5", "top_p=1.5"),
        ("top_p", "inf", "top_p=inf"),
        ("min_p", "-0.1", "min_p"),
        ("top_k", "1.5", "give a whole number or 'default'"),
        ("top_k", "-1", "top_k=-1"),
        ("max_new_tokens", "0", "max_new_tokens=0"),
        ("max_new_tokens", "many", "give a whole number"),
        ("repetition_penalty", "0", "repetition_penalty"),
        ("do_sample", "maybe", "give on or off"),
        ("stop", "", "at least one character"),
        ("colour", "red", "there is no setting 'colour': choose from max_new_tokens"),
    ],
)
def test_a_wrong_value_is_one_line_and_changes_nothing(name: str, text: str, message: str) -> None:
    before = Settings(top_k=7)
    with pytest.raises(ParameterError, match=message) as caught:
        before.with_text(name, text)
    assert "\n" not in str(caught.value)
    assert before == Settings(top_k=7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_options_are_checked_like_set(value: float) -> None:
    with pytest.raises(ParameterError, match="temperature"):
        Settings(temperature=value)


@pytest.mark.parametrize(
    ("given", "draws"),
    [
        ({}, None),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.0}, False),
        ({"top_k": 20}, True),
        ({"top_p": 0.9, "do_sample": False}, False),
        ({"do_sample": True}, True),
        ({"repetition_penalty": 1.1}, None),
    ],
)
def test_asking_for_a_way_to_draw_asks_for_drawing(given: dict[str, Any], draws: bool | None) -> None:
    assert Settings(**given).sampling()["do_sample"] is draws


def test_sampling_holds_what_generation_knows_and_nothing_of_the_screen() -> None:
    assert set(Settings().sampling()) == {
        "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
        "presence_penalty", "frequency_penalty", "seed",
    }  # fmt: skip


def test_every_setting_has_a_line_of_help_and_a_way_to_be_shown() -> None:
    assert tuple(HELP) == NAMES
    settings = Settings(temperature=0.5, stop=("\n",), thinking=True)
    shown = {name: settings.shown(name) for name in NAMES}
    assert shown["temperature"] == "0.5"
    assert shown["stop"] == r"'\n'"
    assert shown["thinking"] == "on"
    assert shown["top_k"] == "default"
    for name in NAMES:
        restored = dataclasses.replace(settings).with_text(name, "default" if name != "stop" else "none")
        assert getattr(restored, name) == getattr(Settings(), name)
