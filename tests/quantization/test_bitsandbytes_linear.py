"""The layers over bitsandbytes' codes, against a decoder of the format that is written out here."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smollm3 import BitsAndBytesConfig
from smollm3.quantization.bitsandbytes import BitsAndBytesQuantizer
from smollm3.quantization.bitsandbytes_linear import Linear4bit, Linear8bit, Linear8bitFloat
from smollm3.quantization.quantizer import QuantizedLinear, dequantize_

CPU = torch.device("cpu")
# The sixteen values of NF4 as its paper prints them, and FP4's by its sign, exponent and mantissa bits.
NF4 = [-1.0, -0.6961928, -0.5250731, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
FP4 = [0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25]
FP4 += [-value for value in FP4]
TABLES = {"nf4": torch.tensor(NF4), "fp4": torch.tensor(FP4)}

# [out, in]: what the fused CPU kernel takes; rows it does not; blocks across rows; odd; less than a block.
SHAPES = [(64, 128), (33, 64), (48, 96), (5, 6), (96, 100), (7, 9), (1, 2)]


def quantized(
    weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None, **asked: Any
) -> Any:
    """Run one layer through the quantiser, as loading does."""
    model = nn.Module()
    model.proj = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    quantizer = BitsAndBytesQuantizer(BitsAndBytesConfig(**asked))
    quantizer.prepare_(model)
    assert quantizer.load_(model, "proj.weight", weight, CPU, dtype or weight.dtype)
    assert not quantizer.load_(model, "proj.bias", torch.empty(0), CPU, weight.dtype)
    if bias is not None:
        model.proj.bias = nn.Parameter(bias, requires_grad=False)
    quantizer.finish_(model)
    return model.proj.eval()


def decode_4bit(stored: dict[str, Tensor], quant_type: str, shape: tuple[int, int]) -> Tensor:
    """Read the stored tensors of a 4-bit layer by the format's definition."""
    codes = stored["weight"].view(torch.uint8).flatten().long()
    values = TABLES[quant_type][torch.stack([codes >> 4, codes & 15], 1).flatten()]
    scales = stored["weight.absmax"]
    if "weight.nested_absmax" in stored:
        state = bytes(stored[f"weight.quant_state.bitsandbytes__{quant_type}"].tolist()).decode()
        offset = float(state.split('"nested_offset": ')[1].rstrip("}"))
        outer = stored["weight.nested_absmax"].repeat_interleave(256)[: len(scales)]
        scales = stored["weight.nested_quant_map"][scales.long()] * outer + offset
    size = shape[0] * shape[1]
    return (values[:size] * scales.repeat_interleave(64)[:size]).view(shape)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected.abs().max()) + 1e-6
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_4bit_codes_mean_what_the_format_says(shape: tuple[int, int], quant_type: str, double: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    layer = quantized(
        weight, bias, load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double
    )
    expected = decode_4bit(layer.state_dict(), quant_type, shape)
    torch.testing.assert_close(layer.dequantize(), expected, atol=1e-6, rtol=1e-5)
    error = (expected - weight).abs().mean() / weight.abs().mean()
    assert error < (0.12 if quant_type == "nf4" else 0.17)
    for x in (torch.randn(3, shape[1]), torch.randn(2, 1, shape[1])):
        with torch.no_grad():
            y = layer(x)
        assert y.dtype == x.dtype
        assert_near(y, x @ expected.T + bias, 0.03)  # the fused kernel rounds to bfloat16


@pytest.mark.parametrize("storage", ["uint8", "int8", "float16", "bfloat16", "float32", "float64"])
def test_codes_are_the_same_in_every_storage(storage: str) -> None:
    weight = torch.randn(64, 128)
    layer = quantized(weight, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=storage)
    plain = quantized(weight, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    assert layer.weight.dtype == getattr(torch, storage)
    assert torch.equal(layer.weight.view(torch.uint8).flatten(), plain.weight.flatten())
    x = torch.randn(1, 128)
    with torch.no_grad():
        assert torch.equal(layer(x), plain(x))
    assert layer.state_dict()["weight"].dtype == getattr(torch, storage)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_what_is_stored_does_not_depend_on_what_was_run(double: bool, compute: torch.dtype) -> None:
    layer = quantized(
        torch.randn(64, 128, dtype=torch.bfloat16),
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute,
    )
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = torch.randn(2, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        first = layer(x)
        after = layer.state_dict()
        assert sorted(after) == sorted(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert torch.equal(layer(x), first), "storing a layer changed what it computes"
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        assert torch.equal(twin(x), first)


def test_moves_keep_codes_and_casts_leave_them_alone() -> None:
    for asked in ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, {"load_in_8bit": True}):
        layer = quantized(torch.randn(64, 128), torch.randn(64), **asked)
        before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        x = torch.randn(4, 128)
        with torch.no_grad():
            first = layer(x)
            layer.to(torch.bfloat16).to("cpu").float()
            assert layer.bias.dtype == torch.float32
            before["bias"] = layer.bias.detach()
            assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in before.items())
            assert_near(layer(x), first, 0.01)  # only the bias was rounded


@pytest.mark.parametrize("asked", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=str)
def test_gradients_flow_to_the_input_even_after_inference(asked: dict[str, Any]) -> None:
    layer = quantized(torch.randn(64, 128), torch.randn(64), **asked)
    weight = layer.dequantize()
    x = torch.randn(3, 128)
    with torch.no_grad():
        layer(x)
    for train in (True, False):
        layer.train(train)
        leaf = x.clone().requires_grad_()
        layer(leaf).sum().backward()
        assert leaf.grad is not None
        assert_near(leaf.grad, weight.sum(0).expand(3, -1), 0.01)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    layer.eval()
    with torch.no_grad():
        assert_near(layer(x), x @ weight.T + layer.bias, 0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_is_a_scale_per_row(shape: tuple[int, int], threshold: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    weight, bias = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype)
    layer = quantized(weight, bias, load_in_8bit=True, llm_int8_threshold=threshold)
    stored = layer.state_dict()
    rows = weight.half().float()
    torch.testing.assert_close(stored["SCB"], rows.abs().amax(1))
    codes = (rows * 127 / stored["SCB"][:, None]).round()
    assert (stored["weight"].float() - codes).abs().max() <= 1  # a tie may fall either way in half precision
    assert stored["weight_format"].item() == 0
    expected = stored["weight"].float() * stored["SCB"][:, None] / 127
    torch.testing.assert_close(layer.dequantize().float(), expected)
    x = torch.randn(3, shape[1])
    if threshold:
        x[:, 0] *= 40  # a column of outliers, which only the threshold keeps from drowning the rest
    x = x.to(dtype)
    with torch.no_grad():
        y = layer(x)
        batched = layer(x.view(1, 3, -1))[0]
    assert y.dtype == dtype
    assert torch.equal(y, batched)
    assert_near(y, x.float() @ expected.T + bias.float(), 0.02)


def test_outlier_columns_stay_exact() -> None:
    torch.manual_seed(2)
    weight = torch.randn(32, 64)
    x = torch.randn(5, 64)
    x[:, 7] = 100.0
    errors = []
    for threshold in (6.0, 0.0):
        layer = quantized(weight, load_in_8bit=True, llm_int8_threshold=threshold)
        with torch.no_grad():
            errors.append(float((layer(x) - x @ layer.dequantize().T).abs().max()))
    assert errors[0] < errors[1] / 4


def test_int8_over_float_weights_can_be_trained() -> None:
    torch.manual_seed(3)
    model = nn.Module()
    model.proj = nn.Linear(64, 32, device="meta")
    quantizer = BitsAndBytesQuantizer(BitsAndBytesConfig(load_in_8bit=True, llm_int8_has_fp16_weight=True))
    quantizer.prepare_(model)
    assert isinstance(model.proj, Linear8bitFloat)
    assert not quantizer.load_(model, "proj.weight", torch.randn(32, 64), CPU, torch.float32)
    weight = torch.randn(32, 64)
    model.proj.weight, model.proj.bias = nn.Parameter(weight.clone()), nn.Parameter(torch.zeros(32))
    x = torch.randn(4, 64)
    y = model.proj.train()(x)
    assert_near(y.detach(), x @ weight.T, 0.03)
    y.square().sum().backward()
    assert_near(model.proj.weight.grad, 2 * (x @ weight.T).T @ x, 0.05)
    with torch.no_grad():
        model.proj.weight.mul_(2)
        assert_near(model.proj.eval()(x), 2 * x @ weight.T, 0.03)
    assert sorted(model.proj.state_dict()) == ["bias", "weight"]
    assert quantizer.config_dict() is None, "plain weights are stored: nothing to say about them"


@pytest.mark.parametrize("asked", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=str)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_dequantize_gives_plain_layers_back(asked: dict[str, Any], dtype: torch.dtype | None) -> None:
    model = nn.Sequential(quantized(torch.randn(64, 128), torch.randn(64), **asked), nn.ReLU())
    layer: Any = model[0]
    weight = layer.dequantize()
    dequantize_(model, dtype)
    plain = model[0]
    assert type(plain) is nn.Linear
    assert not plain.training
    assert plain.weight.dtype == (dtype or weight.dtype)
    assert torch.equal(plain.weight.detach(), weight.to(plain.weight.dtype))
    assert plain.bias.dtype == plain.weight.dtype
    assert sorted(model.state_dict()) == ["0.bias", "0.weight"]


def test_layers_know_their_sizes() -> None:
    weight = torch.randn(64, 128, dtype=torch.bfloat16)
    single = quantized(weight, load_in_4bit=True)
    double = quantized(weight, load_in_4bit=True, bnb_4bit_use_double_quant=True)
    eight = quantized(weight, load_in_8bit=True)
    assert isinstance(single, Linear4bit)
    assert isinstance(eight, Linear8bit)
    assert single.weight_bytes() == (64 * 128 // 2, 4 * (128 + 16))
    assert double.weight_bytes() == (64 * 128 // 2, 128 + 4 * (16 + 1 + 256))
    assert eight.weight_bytes() == (64 * 128, 4 * 64)
    assert all(isinstance(layer, QuantizedLinear) for layer in (single, double, eight))
    assert not isinstance(nn.Linear(2, 2), QuantizedLinear)
    assert repr(single) == "Linear4bit(in_features=128, out_features=64, bias=False)"


@pytest.mark.gpu
@pytest.mark.parametrize(
    "asked",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
        {"load_in_8bit": True},
    ],
    ids=str,
)
def test_a_layer_computes_the_same_on_the_gpu_and_back(asked: dict[str, Any]) -> None:
    assert torch.cuda.is_available(), "this test needs a CUDA device"
    layer = quantized(torch.randn(64, 128), torch.randn(64), **asked)
    stored = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = torch.randn(3, 128)
    with torch.no_grad():
        here = layer(x)
        there = layer.to("cuda")(x.to("cuda"))
        assert there.device.type == "cuda"
        assert_near(there.cpu(), here, 0.03)
        assert_near(layer.to("cpu")(x), here, 1e-6)
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in stored.items())
