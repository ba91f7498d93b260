"""The native engine against the torch model with the same weights, and the same bits however it is asked."""

from collections.abc import Callable

import pytest
import torch
from native_models import BOUND, LAYOUTS, pair, prompt, relative_error, tiny_model, torch_logits
from torch import Tensor, nn

from smollm3.engine.engine import Request
from smollm3.engine.params import SamplingParams
from smollm3.engine.runner import Row
from smollm3.errors import DeviceError, ParameterError
from smollm3.model import generation
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.native_runner import PREFILL_CHUNK, NativeRunner, refusal
from smollm3.model.recomputing_runner import RecomputingRunner
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import TorchRunner
from smollm3.native.library import native_status


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("isa", native_status().isas)
@pytest.mark.parametrize("scheme", ["bf16", *LAYOUTS])
def test_logits_equal_torch_within_the_bound(scheme: str, isa: str, kv_bits: int) -> None:
    model, plain = pair(scheme)
    ids = prompt(70)
    runner = NativeRunner(model, isa=isa, kv_bits=kv_bits, threads=2)
    got = runner.forward([Row(runner.open(80), ids, 0)])[0]
    assert relative_error(got, torch_logits(plain, ids)) < BOUND


VARIETY: dict[str, dict[str, object]] = {
    "no NoPE layer": {"no_rope_layers": [1, 1, 1, 1, 1]},
    "only NoPE layers": {"no_rope_layers": [0, 0, 0, 0, 0]},
    "one kv head": {"num_key_value_heads": 1},
    "no grouping": {"num_key_value_heads": 6},
    "nine heads of three": {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "untied": {"tie_word_embeddings": False},
    "head size 48": {"head_dim": 48},
    "sizes that divide by 32 only": {"hidden_size": 96, "intermediate_size": 160, "head_dim": 16},
    "yarn": {
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
        "max_position_embeddings": 128,
    },
    "sliding window": {
        "use_sliding_window": True,
        "sliding_window": 20,
        "no_rope_layers": [0, 1, 0, 1, 0],
    },
}


@pytest.mark.parametrize("scheme", ["bf16", "int4"])
@pytest.mark.parametrize("name", VARIETY)
def test_all_of_the_configs_variety(name: str, scheme: str) -> None:
    model, plain = pair(scheme, **VARIETY[name])
    assert refusal(model) is None
    ids = prompt(90)
    runner = NativeRunner(model)
    got = runner.forward([Row(runner.open(90), ids, 0)])[0]
    assert relative_error(got, torch_logits(plain, ids)) < BOUND


@pytest.mark.parametrize("isa", native_status().isas)
@pytest.mark.parametrize("scheme", ["bf16", *LAYOUTS])
def test_bits_depend_on_no_batch_no_chunking_and_no_thread_count(scheme: str, isa: str) -> None:
    model, _ = pair(scheme)
    ids, other = prompt(700), prompt(300, seed=1)
    whole = NativeRunner(model, isa=isa, threads=1)
    expected = whole.forward([Row(whole.open(700), ids, 0)])[0]
    assert torch.isfinite(expected).all()

    mixed = NativeRunner(model, isa=isa, threads=3)
    a, b = mixed.open(700), mixed.open(300)
    mixed.forward([Row(a, ids[:7], 0)])
    mixed.forward([Row(b, other[:100], 0), Row(a, ids[7:640], 7)])
    mixed.forward([Row(a, ids[640:699], 640), Row(b, other[100:101], 100)])
    got = mixed.forward([Row(b, other[101:102], 101), Row(a, ids[699:], 699)])[1]
    assert torch.equal(got, expected)


def test_a_reused_prefix_and_a_fork_give_the_same_bits() -> None:
    model, _ = pair("int4")
    ids = prompt(150)
    runner = NativeRunner(model)
    slot = runner.open(200)
    runner.forward([Row(slot, ids[:100], 0)])
    child = runner.fork(slot)
    runner.forward([Row(slot, prompt(50, seed=9), 100)])  # the parent goes another way
    forked = runner.forward([Row(child, ids[100:], 100)])[0]
    back = runner.forward([Row(slot, ids[100:], 100)])[0]  # and takes it back
    fresh = NativeRunner(model)
    expected = fresh.forward([Row(fresh.open(200), ids, 0)])[0]
    assert torch.equal(forked, expected)
    assert torch.equal(back, expected)


@pytest.mark.parametrize("scheme", ["bf16", "int4"])
def test_decoding_step_by_step_equals_torch_without_a_cache(scheme: str) -> None:
    model, plain = pair(scheme)
    runner = NativeRunner(model)
    slot, ids = runner.open(100), prompt(5)
    got = runner.forward([Row(slot, ids, 0)])[0]
    for _ in range(12):
        assert relative_error(got, torch_logits(plain, ids)) < BOUND
        ids = [*ids, int(got.argmax())]
        got = runner.forward([Row(slot, ids[-1:], len(ids) - 1)])[0]


def test_long_context_and_many_rows() -> None:
    model, plain = pair("int8")
    runner = NativeRunner(model, threads=2)
    ids = prompt(PREFILL_CHUNK * 4 + 3)
    rows = [Row(runner.open(64), prompt(n, seed=n), 0) for n in range(1, 34)]
    got = runner.forward([Row(runner.open(len(ids)), ids, 0), *rows])
    assert relative_error(got[0], torch_logits(plain, ids)) < BOUND
    for n in (1, 17, 33):
        assert relative_error(got[n], torch_logits(plain, prompt(n, seed=n))) < BOUND


def test_two_models_and_two_python_threads_do_not_meet() -> None:
    from concurrent.futures import ThreadPoolExecutor

    models = [pair("int4")[0], pair("bf16", num_hidden_layers=3)[0]]

    def work(model: SmolLM3ForCausalLM) -> Tensor:
        runner = NativeRunner(model, threads=2)
        slot = runner.open(300)
        return torch.stack([runner.forward([Row(slot, prompt(40, seed=i), 40 * i)])[0] for i in range(5)])

    alone = [work(model) for model in models]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, models * 4))
    for i, result in enumerate(together):
        assert torch.equal(result, alone[i % 2])


def with_hook(model: SmolLM3ForCausalLM) -> SmolLM3ForCausalLM:
    model.model.norm.register_forward_hook(lambda module, inputs, output: output)
    return model


def with_adapter(model: SmolLM3ForCausalLM) -> SmolLM3ForCausalLM:
    attention = model.get_submodule("model.layers.0.self_attn")
    attention.o_proj = nn.Sequential(attention.get_submodule("o_proj"))
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "float32": (lambda: tiny_model().float(), "float32 on cpu, not bfloat16"),
    "activation": (lambda: tiny_model(hidden_act="gelu"), "hidden_act 'gelu'"),
    "dynamic rope": (
        lambda: tiny_model(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "dynamic RoPE",
    ),
    "head size": (lambda: tiny_model(head_dim=40), "head_dim 40"),
    "hidden size": (lambda: tiny_model(hidden_size=48, num_attention_heads=6, head_dim=16), "divide by 32"),
    "hooks": (lambda: with_hook(tiny_model()), "model.norm has forward hooks"),
    "adapter": (lambda: with_adapter(tiny_model()), "o_proj is a Sequential"),
    "no head": (lambda: tiny_model().model, "not a causal language model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_run_is_refused_in_one_sentence(name: str) -> None:
    make, words = REFUSED[name]
    model = make()
    assert words in str(refusal(model))
    with pytest.raises(DeviceError, match="native engine cannot run"):
        NativeRunner(model)  # type: ignore[arg-type]


def test_generate_takes_the_engine_that_was_chosen() -> None:
    model = tiny_model()
    ids = torch.tensor([prompt(9)])
    seen: list[str] = []
    answers = {}
    for engine in ("native", "torch", "auto"):
        model.engine = engine
        runner = generation._runner(model, GenerationConfig(), [Request(ids[0].tolist(), SamplingParams(4))])
        seen.append(type(runner).__name__)
        answers[engine] = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert seen == ["NativeRunner", "TorchRunner", "NativeRunner"]
    assert torch.equal(answers["auto"], answers["native"])
    model.set_attn_implementation("eager")
    assert isinstance(generation._native_runner(model, []), type(None))
    model.engine = "metal"
    with pytest.raises(ParameterError, match="auto, native, torch"):
        model.generate(ids, max_new_tokens=1)
    model.float().engine = "native"
    with pytest.raises(DeviceError, match="not bfloat16"):
        model.generate(ids, max_new_tokens=1)


def test_bad_steps_are_errors_not_crashes() -> None:
    model, _ = pair("bf16")
    with pytest.raises(ParameterError, match="choose one of"):
        NativeRunner(model, isa="avx1024")
    runner = NativeRunner(model, max_cache_tokens=128)
    with pytest.raises(ValueError, match="outside the vocabulary of 331"):
        runner.forward([Row(runner.open(10), [331], 0)])
    with pytest.raises(MemoryError, match="no free block"):
        runner.forward([Row(runner.open(200), prompt(129), 0)])


def test_a_packed_layer_in_torch_gives_the_kernels_numbers() -> None:
    model, plain = pair("int4")
    ids = torch.tensor([prompt(20), prompt(20, seed=1)])
    with torch.no_grad():
        got, expected = model.float()(ids).logits, plain(ids).logits
    assert relative_error(got, expected) < BOUND


def test_hidden_states_are_those_of_the_torch_model() -> None:
    model, plain = pair("bf16")
    ids = prompt(700)
    runner = NativeRunner(model)
    slot = runner.open(700)
    parts = [runner.hidden([Row(slot, ids[a:b], a)]) for a, b in ((0, 3), (3, 600), (600, 700))]
    got = runner.hidden([Row(runner.open(700), ids, 0), Row(runner.open(9), ids[:9], 0)])
    assert torch.equal(torch.cat(parts), got[:700]), "neither company nor pieces change a bit"
    assert torch.equal(got[700:], got[:9])
    got = got[:700]
    with torch.no_grad():
        expected = plain.model(torch.tensor([ids])).last_hidden_state[0]
    assert got.shape == expected.shape
    assert relative_error(got, expected) < BOUND
    for other in (TorchRunner(plain), RecomputingRunner(plain)):
        slots = [other.open(700), other.open(9)]
        first = other.hidden([Row(slots[0], ids[:300], 0), Row(slots[1], ids[:9], 0)])
        torch.testing.assert_close(first, torch.cat((expected[:300], expected[:9])))
        torch.testing.assert_close(other.hidden([Row(slots[0], ids[300:], 300)]), expected[300:])
