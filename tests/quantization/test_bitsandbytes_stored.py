"""Stored codes and scales: read back exactly, and refused where anything does not fit."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smollm3 import BitsAndBytesConfig
from smollm3.errors import CheckpointError
from smollm3.quantization.bitsandbytes import BitsAndBytesQuantizer

CPU = torch.device("cpu")
SHAPE = (64, 128)
STATE = "weight.quant_state.bitsandbytes__nf4"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DOUBLE = {**NF4, "bnb_4bit_use_double_quant": True}
INT8 = {"load_in_8bit": True}
Tensors = dict[str, Tensor]


def model_of(shape: tuple[int, int] = SHAPE) -> nn.Module:
    model = nn.Module()
    model.proj = nn.Linear(shape[1], shape[0], bias=False, device="meta")
    return model


def stored_layer(asked: dict[str, Any], shape: tuple[int, int] = SHAPE) -> Tensors:
    torch.manual_seed(0)
    model, quantizer = model_of(shape), BitsAndBytesQuantizer(BitsAndBytesConfig(**asked))
    quantizer.prepare_(model)
    quantizer.load_(model, "proj.weight", torch.randn(shape), CPU, torch.float32)
    return {name.removeprefix("proj."): tensor for name, tensor in quantizer.state_dict(model)}


def read(asked: dict[str, Any], tensors: Tensors, shape: tuple[int, int] = SHAPE) -> Any:
    model, quantizer = model_of(shape), BitsAndBytesQuantizer(BitsAndBytesConfig(**asked), stored=True)
    quantizer.prepare_(model)
    for name, tensor in tensors.items():
        assert quantizer.load_(model, f"proj.{name}", tensor, CPU, torch.float32), name
    quantizer.finish_(model)
    return model.proj


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("shape", [SHAPE, (5, 6), (48, 96), (300, 128)], ids=str)
@pytest.mark.parametrize("asked", [NF4, DOUBLE, INT8, {**NF4, "bnb_4bit_quant_storage": "int8"}], ids=str)
def test_stored_layers_read_back_in_any_order(
    asked: dict[str, Any], shape: tuple[int, int], backwards: bool
) -> None:
    tensors = stored_layer(asked, shape)
    layer = read(asked, dict(sorted(tensors.items(), reverse=backwards)), shape)
    again = layer.state_dict()
    assert sorted(again) == sorted(tensors)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    fresh = model_of(shape)
    quantizer = BitsAndBytesQuantizer(BitsAndBytesConfig(**asked))
    quantizer.prepare_(fresh)
    torch.manual_seed(0)
    quantizer.load_(fresh, "proj.weight", torch.randn(shape), CPU, torch.float32)
    x = torch.randn(2, shape[1])
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), fresh.eval().proj(x))


def test_names_of_other_modules_are_left_alone() -> None:
    model, quantizer = model_of(), BitsAndBytesQuantizer(BitsAndBytesConfig(**NF4), stored=True)
    quantizer.prepare_(model)
    for name in ("norm.weight", "proj.bias", "other.proj.weight.absmax", "weight", "proj"):
        assert not quantizer.load_(model, name, torch.zeros(4), CPU, torch.float32)
    assert not quantizer.load_(model, "proj.weight", torch.zeros(SHAPE), CPU, torch.float32)
    quantizer.finish_(model)
    assert type(model.proj) is nn.Linear, "a float weight in the file stays one"


def test_codes_without_weight_format_are_rows() -> None:
    tensors = stored_layer(INT8)
    expected = read(INT8, tensors).dequantize()
    del tensors["weight_format"]
    assert torch.equal(read(INT8, tensors).dequantize(), expected)


def test_scales_that_transformers_stored_transposed_are_put_right() -> None:
    """What transformers writes when a model ran on an AVX512-BF16 CPU before it was saved."""
    tensors = stored_layer(NF4)
    expected = read(NF4, tensors).dequantize()
    tensors["weight.absmax"] = tensors["weight.absmax"].view(64, 2).t().contiguous().bfloat16()
    torch.testing.assert_close(read(NF4, tensors).dequantize(), expected, rtol=2**-8, atol=0)


def state(change: Callable[[dict[str, Any]], object]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        facts = json.loads(bytes(tensors[STATE].tolist()))
        change(facts)
        tensors[STATE] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)

    return apply


def put(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__setitem__(name, change(tensors[name]))


def not_json(text: bytes) -> Callable[[Tensors], None]:
    return put(STATE, lambda _: torch.tensor(list(text), dtype=torch.uint8))


def drop(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(name)


def poison(tensor: Tensor) -> Tensor:
    return torch.cat([tensor[:-1], torch.tensor([float("nan")])])


DAMAGED: dict[str, tuple[dict[str, Any], Callable[[Tensors], None], str]] = {
    "codes too short": (NF4, put("weight", lambda t: t[:-1]), "4095 bytes of codes for 8192 weights"),
    "codes too long": (NF4, put("weight", lambda t: torch.cat([t, t])), "8192 bytes of codes"),
    "codes of another dtype": (NF4, put("weight", lambda t: t.int()), "16384 bytes of codes"),
    "scales too few": (NF4, put("weight.absmax", lambda t: t[:1]), "1 values in weight.absmax where 128"),
    "scales too many": (NF4, put("weight.absmax", lambda t: t.repeat(2)), "256 values in weight.absmax"),
    "scales not finite": (NF4, put("weight.absmax", poison), "not finite"),
    "scales of another dtype": (NF4, put("weight.absmax", lambda t: t.double()), "torch.float64"),
    "scales coded in a plain layer": (NF4, put("weight.absmax", lambda t: t.byte()), "torch.uint8"),
    "scales plain in a nested layer": (DOUBLE, put("weight.absmax", lambda t: t.float()), "torch.float32"),
    "outer scales too few": (
        DOUBLE,
        put("weight.nested_absmax", lambda t: t[:0]),
        "0 values in weight.nested",
    ),
    "outer table too short": (
        DOUBLE,
        put("weight.nested_quant_map", lambda t: t[:9]),
        "9 values in weight.n",
    ),
    "another table": (NF4, put("weight.quant_map", lambda t: t.flip(0)), "not bitsandbytes' own"),
    "table too long": (NF4, put("weight.quant_map", lambda t: t.repeat(2)), "32 values in weight.quant_map"),
    "state of another type": (NF4, state(lambda f: f.update(quant_type="fp4")), "quant_type 'fp4'"),
    "state of another shape": (NF4, state(lambda f: f.update(shape=[128, 64])), "shape [128, 64]"),
    "state with a huge shape": (
        NF4,
        state(lambda f: f.update(shape=[2**62, 2])),
        "shape [4611686018427387904",
    ),
    "state with blocks of 0": (NF4, state(lambda f: f.update(blocksize=0)), "blocksize 0"),
    "state with blocks of 63": (NF4, state(lambda f: f.update(blocksize=63)), "blocksize 63"),
    "state with fewer, larger blocks": (NF4, state(lambda f: f.update(blocksize=4096)), "128 values in"),
    "state with blocks of True": (NF4, state(lambda f: f.update(blocksize=True)), "blocksize True"),
    "state with an odd dtype": (NF4, state(lambda f: f.update(dtype="load")), "dtype 'load'"),
    "state without blocks": (NF4, state(lambda f: f.pop("blocksize")), "blocksize None"),
    "nested blocks of 16": (DOUBLE, state(lambda f: f.update(nested_blocksize=16)), "nested_blocksize 16"),
    "offset not a number": (DOUBLE, state(lambda f: f.update(nested_offset="1")), "nested_offset '1'"),
    "offset infinite": (DOUBLE, state(lambda f: f.update(nested_offset=1e999)), "nested_offset inf"),
    "nested dtype odd": (DOUBLE, state(lambda f: f.update(nested_dtype="int4")), "nested_dtype 'int4'"),
    "nested unknown to the state": (
        DOUBLE,
        state(lambda f: f.pop("nested_offset")),
        "its state does not know",
    ),
    "state no JSON": (NF4, not_json(b"{"), "not a JSON object"),
    "state no text": (NF4, not_json(b"\xff\xfe"), "not a JSON object"),
    "state a list": (NF4, not_json(b"[1]"), "not a JSON object"),
    "state nested without end": (NF4, not_json(b"[" * 100_000), "not a JSON object"),
    "state nested deeply": (NF4, not_json(b"[" * 4000), "not a JSON object"),
    "state missing": (NF4, drop(STATE), f"lacks {STATE}"),
    "scales missing": (NF4, drop("weight.absmax"), "lacks weight.absmax"),
    "codes missing": (NF4, drop("weight"), "lacks weight: "),
    "outer scales missing": (DOUBLE, drop("weight.nested_absmax"), "weight.nested_absmax"),
    "rows of another shape": (INT8, put("weight", lambda t: t.t()), "shape (128, 64)"),
    "rows of another dtype": (INT8, put("weight", lambda t: t.byte()), "torch.uint8 where int8"),
    "row scales too few": (INT8, put("SCB", lambda t: t[:-1]), "63 values in SCB where 64"),
    "row scales not finite": (INT8, put("SCB", poison), "not finite"),
    "rows in another order": (INT8, put("weight_format", lambda t: t + 1), "weight_format [1]"),
    "row scales missing": (INT8, drop("SCB"), "lacks SCB"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named_in_one_line_before_any_kernel_sees_it(case: str) -> None:
    asked, damage, words = DAMAGED[case]
    tensors = stored_layer(asked)
    damage(tensors)
    with pytest.raises(CheckpointError) as caught:
        read(asked, tensors)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_float_weight_of_another_shape_is_refused() -> None:
    model, quantizer = model_of(), BitsAndBytesQuantizer(BitsAndBytesConfig(**NF4))
    quantizer.prepare_(model)
    for wrong in (torch.zeros(SHAPE[::-1]), torch.zeros(SHAPE, dtype=torch.int64)):
        with pytest.raises(CheckpointError, match=r"'proj\.weight' has the shape"):
            quantizer.load_(model, "proj.weight", wrong, CPU, torch.float32)
