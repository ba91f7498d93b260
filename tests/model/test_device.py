"""Where a model runs: every form of device_map, and one line for a device that is not there."""

from typing import Any

import pytest
import torch

from smollm3.errors import DeviceError, ParameterError
from smollm3.model.device import resolve_device


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing but its CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA devices, of which the second is current."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


CPU_FORMS: list[Any] = [
    None,
    "cpu",
    "auto",
    "balanced",
    "sequential",
    -1,
    torch.device("cpu"),
    {"": "cpu"},
    {"": "auto"},
    {"model": "cpu", "lm_head": torch.device("cpu")},
]


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("asked", CPU_FORMS, ids=str)
def test_forms_that_are_the_cpu_where_there_is_nothing_else(asked: Any) -> None:
    assert resolve_device(asked) == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, "cpu"),
        ("cpu", "cpu"),
        (-1, "cpu"),
        ("auto", "cuda:1"),
        ("cuda", "cuda"),
        (0, "cuda:0"),
        (1, "cuda:1"),
        ("cuda:1", "cuda:1"),
        (torch.device("cuda", 0), "cuda:0"),
        ({"": 0}, "cuda:0"),
        ({"model": 0, "lm_head": "cuda:0"}, "cuda:0"),
    ],
    ids=str,
)
def test_forms_on_a_machine_with_two_gpus(asked: Any, expected: str) -> None:
    assert resolve_device(asked) == torch.device(expected)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cuda", "asks for a CUDA GPU and there is none: pass device_map='cpu'"),
        (0, "asks for a CUDA GPU and there is none"),
        ({"": "cuda:3"}, "asks for a CUDA GPU and there is none"),
        ("mps", "asks for an Apple GPU and there is none"),
        ("meta", "cannot run a model"),
    ],
    ids=str,
)
def test_a_device_that_is_not_there_is_never_replaced(asked: Any, message: str) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        resolve_device(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("asked", [2, "cuda:2", torch.device("cuda", 99)], ids=str)
def test_a_gpu_too_many(asked: Any) -> None:
    with pytest.raises(DeviceError, match=r"asks for CUDA GPU [0-9]+ and there are 2, counted"):
        resolve_device(asked)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("gpu", "device_map='gpu': give 'auto', 'cpu'"),
        ("", "device_map=''"),
        ("disk", "device_map='disk'"),
        ("cuda:x", "device_map='cuda:x'"),
        (True, "device_map=True"),
        (0.0, "device_map=0.0"),
        (-2, "device_map=-2"),
        (["cuda:0"], r"device_map=\['cuda:0'\]"),
        ({}, "names 0 devices: the model runs on one"),
        ({"model": 0, "lm_head": 1}, "names 2 devices: the model runs on one"),
        ({"model": 0, "lm_head": "cpu"}, "names 2 devices"),
        ({"": "disk"}, "device_map='disk'"),
    ],
    ids=str,
)
def test_what_names_no_device_is_refused(asked: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        resolve_device(asked)
    assert "\n" not in str(caught.value)
