"""What cannot be loaded is said in one line, before any weight is read."""

import importlib.util
from typing import Any

import pytest
import torch

from smollm3.cli.loading import Plan, plan_loading
from smollm3.cli.main import main
from smollm3.cli.options import LoadOptions
from smollm3.errors import DeviceError, MissingDependencyError, ParameterError, SmolLM3Error


def machine(
    monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False, installed: str = ""
) -> None:
    """Make this machine one with `cuda` CUDA devices and the packages that are named."""
    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        if name in ("bitsandbytes", "flash_attn"):
            return find("json") if name in installed else None
        return find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_the_page_s_command_on_a_machine_without_cuda(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch)
    words = "chat no/such-model --torch_dtype auto --attn_implementation flash_attention_2 --device 0"
    assert main(words.split()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for part in (
        "error: ",
        "--device 0 needs a CUDA device",
        "flash-attn package",
        "--device cpu",
        "--attn-implementation sdpa",
    ):
        assert part in captured.err
    assert "no/such-model" not in captured.err, "said before the model is even looked for"


@pytest.mark.parametrize(
    ("cuda", "installed", "options", "error", "parts"),
    [
        (0, "", {"device": "cuda"}, DeviceError, ["--device cuda needs a CUDA device", "pass --device cpu"]),
        (1, "", {"device": "3"}, DeviceError, ["needs CUDA device 3, and there are 1", "--device 0"]),
        (0, "", {"device": "mps"}, DeviceError, ["needs an Apple GPU", "pass --device cpu"]),
        (
            0, "flash_attn", {"device": "cpu", "attn_implementation": "flash_attention_2"}, DeviceError,
            ["flash_attention_2 needs a CUDA device", "pass --attn-implementation sdpa"],
        ),
        (
            1, "", {"device": "0", "attn_implementation": "flash_attention_2"}, MissingDependencyError,
            ["the flash-attn package, which is not installed", "pass --attn-implementation sdpa"],
        ),
        (
            0, "", {"quantize": "nf4"}, MissingDependencyError,
            ["--quantize nf4 needs bitsandbytes", "pip install 'smollm3[bitsandbytes]'"],
        ),
        (0, "", {"device": "gpu"}, ParameterError, ["--device 'gpu': choose auto, cpu, cuda, mps"]),
        (0, "", {"device": "cpu:0"}, ParameterError, ["--device 'cpu:0'"]),
        (0, "", {"device": "-1"}, ParameterError, ["--device '-1'"]),
        (0, "", {"dtype": "int4"}, ParameterError, ["--dtype 'int4': choose from auto, float32"]),
        (0, "", {"attn_implementation": "magic"}, ParameterError, ["'magic': choose from eager, sdpa"]),
        (0, "bitsandbytes", {"quantize": "q4"}, ParameterError, ["'q4': choose from nf4, fp4, int8"]),
    ],
)  # fmt: skip
def test_what_is_missing_and_what_to_pass_instead(
    cuda: int,
    installed: str,
    options: dict[str, str],
    error: type[SmolLM3Error],
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, cuda=cuda, installed=installed)
    with pytest.raises(error) as caught:
        plan_loading(LoadOptions("m", **options))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("cuda", "mps", "options", "plan"),
    [
        (0, False, {}, Plan("cpu", "auto", "sdpa", None)),
        (2, False, {}, Plan("cuda:0", "auto", "sdpa", None)),
        (0, True, {}, Plan("mps", "auto", "sdpa", None)),
        (2, False, {"device": "1"}, Plan("cuda:1", "auto", "sdpa", None)),
        (2, False, {"device": "cuda:1"}, Plan("cuda:1", "auto", "sdpa", None)),
        (2, False, {"device": "cpu", "dtype": "bf16"}, Plan("cpu", "bfloat16", "sdpa", None)),
        (
            0,
            False,
            {"dtype": "torch.float32", "attn_implementation": "eager"},
            Plan("cpu", "float32", "eager", None),
        ),
        (0, False, {"attn_implementation": "flex-attention"}, Plan("cpu", "auto", "flex_attention", None)),
        (
            1,
            False,
            {"attn_implementation": "flash_attention_2"},
            Plan("cuda:0", "auto", "flash_attention_2", None),
        ),
        (0, False, {"quantize": "fp4"}, Plan("cpu", "auto", "sdpa", "fp4")),
    ],
)
def test_what_is_possible_is_planned_as_asked(
    cuda: int, mps: bool, options: dict[str, str], plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps, installed="flash_attn bitsandbytes")
    assert plan_loading(LoadOptions("m", **options)) == plan  # type: ignore[arg-type]
