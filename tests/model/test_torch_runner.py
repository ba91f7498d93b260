"""The torch runner against plain forward passes of the same model: mixed rows, chunks, forks, padding."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_models import new_ids, replaying, tiny_model
from torch import Tensor

from smollm3.engine.runner import Row, Runner
from smollm3.errors import ParameterError
from smollm3.model.captured_steps import CapturedSteps, Work
from smollm3.model.config import SmolLM3Config
from smollm3.model.recomputing_runner import RecomputingRunner
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import MAX_PADDED_TOKENS, TorchRunner, context_size
from smollm3.quantization.config import BitsAndBytesConfig

RUNNERS: dict[str, Any] = {
    "growing": TorchRunner,
    "hinted": lambda model: TorchRunner(model, num_slots=2, room=16),
    "replaying": lambda model: replaying(TorchRunner(model)),
    "replaying, hinted": lambda model: replaying(TorchRunner(model, num_slots=4, room=48)),
    "recomputing": RecomputingRunner,
}


def logits_alone(model: SmolLM3ForCausalLM, ids: list[int]) -> Tensor:
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return out[0, -1]


def windowed_model() -> SmolLM3ForCausalLM:
    torch.manual_seed(2)
    config = SmolLM3Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=4,
        max_position_embeddings=64,
        initializer_range=0.25,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return SmolLM3ForCausalLM(config).eval()


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("kind", RUNNERS)
def test_random_mixes_of_rows_give_each_its_own_logits(kind: str, windowed: bool) -> None:
    model = windowed_model() if windowed else tiny_model()
    for seed in range(4):
        rng = random.Random(seed)
        runner: Runner = RUNNERS[kind](model)
        held: dict[int, list[int]] = {}
        for _ in range(14):
            if held and rng.random() < 0.2:
                slot = rng.choice(list(held))
                runner.close(slot)
                del held[slot]
            if held and rng.random() < 0.2:
                source = rng.choice(list(held))
                if held[source]:
                    held[runner.fork(source)] = list(held[source])
            for _ in range(rng.randint(0, 2) if held else 2):
                held[runner.open(60)] = []
            chosen = rng.sample(list(held), rng.randint(1, len(held)))
            rows = []
            for slot in chosen:
                num = 1 if held[slot] and rng.random() < 0.7 else rng.randint(1, 5)
                ids = [rng.randrange(3, 40) for _ in range(num)]
                rows.append(Row(slot, ids, len(held[slot])))
                held[slot] += ids
            logits = runner.forward(rows)
            assert logits.shape == (len(rows), 40)
            assert logits.dtype == torch.float32
            expected = torch.stack([logits_alone(model, held[row.slot]) for row in rows])
            torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


def passes_of(runner: TorchRunner, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of the ids that go through the model for one step."""
    seen: list[tuple[int, int]] = []
    model = runner.model.model
    forward = model.forward

    def spy(*args: Any, **arguments: Any) -> Any:
        seen.append(tuple(arguments["input_ids"].shape))
        return forward(*args, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", spy)
        runner.forward(rows)
    return seen


def test_decode_rows_run_in_one_pass_and_prompts_together_unless_padding_wastes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = TorchRunner(tiny_model())
    slots = [runner.open(60) for _ in range(5)]
    prompts = [Row(slots[0], [3] * 6, 0), Row(slots[1], [4] * 5, 0), Row(slots[2], [5] * 40, 0)]
    assert passes_of(runner, prompts, monkeypatch) == [(2, 6), (1, 40)]
    mixed = [
        Row(slots[0], [7], 6),
        Row(slots[3], [8] * 4, 0),
        Row(slots[1], [7], 5),
        Row(slots[2], [7] * 2, 40),
        Row(slots[4], [9], 0),
    ]
    assert passes_of(runner, mixed, monkeypatch) == [(1, 2), (1, 4), (3, 1)]
    assert MAX_PADDED_TOKENS >= 1024


def test_logits_are_computed_for_last_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    runner = TorchRunner(model)
    shapes: list[tuple[int, ...]] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    try:
        slots = [runner.open(60), runner.open(60)]
        runner.forward([Row(slots[0], [3] * 9, 0), Row(slots[1], [4] * 7, 0)])
    finally:
        hook.remove()
    assert shapes == [(2, 40)]


def test_a_recorded_step_leaves_other_slots_alone_and_goes_with_the_caches_memory() -> None:
    model = tiny_model()
    recorded: list[int] = []

    def record(work: Work) -> Work:
        recorded.append(runner.cache.room)
        return work

    runner = TorchRunner(model, num_slots=4, room=16)
    runner.captured = CapturedSteps(model, runner.cache, record)
    texts = [[3] * 6, [4] * 4, [9, 8, 7]]
    slots = [runner.open(60) for _ in texts]
    runner.forward([Row(slot, ids, 0) for slot, ids in zip(slots, texts, strict=True)])
    for step in range(30):  # the third waits
        for ids in texts[:2]:
            ids.append(5 + step)
        logits = runner.forward(
            [Row(slot, ids[-1:], len(ids) - 1) for slot, ids in zip(slots[:2], texts[:2], strict=True)]
        )
        for row, ids in zip(logits, texts[:2], strict=True):
            torch.testing.assert_close(row, logits_alone(model, ids), atol=1e-4, rtol=1e-4)
    assert len(recorded) == len(set(recorded)) >= 2
    waited = runner.forward([Row(slots[2], [6], 3)])[0]
    torch.testing.assert_close(waited, logits_alone(model, [9, 8, 7, 6]), atol=1e-4, rtol=1e-4)


def test_a_bf16_model_gives_fp32_logits_of_its_own_numbers() -> None:
    torch.manual_seed(0)
    model = SmolLM3ForCausalLM(tiny_model().config).to(torch.bfloat16).eval()
    runner = TorchRunner(model)
    logits = runner.forward([Row(runner.open(9), [5, 6, 7], 0)])
    assert logits.dtype == torch.float32
    assert torch.equal(logits[0], logits_alone(model, [5, 6, 7]).float())
    assert runner.cache.keys[0].dtype == torch.bfloat16


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree_on_rows_of_several_lengths(implementation: str) -> None:
    model = tiny_model()
    before = model.config.attn_implementation
    rows = [[5, 6, 7, 8, 9], [4], [11, 12, 13]]
    try:
        model.config.attn_implementation = implementation
        out = model.generate(rows, max_new_tokens=10, eos_token_id=[], pad_token_id=1000)
    finally:
        model.config.attn_implementation = before
    expected = [model.generate(row, max_new_tokens=10, eos_token_id=[])[0, -10:].tolist() for row in rows]
    assert new_ids(out, 5) == expected


def test_the_context_is_the_configs_and_dynamic_rope_stretches_it() -> None:
    assert context_size(tiny_model()) == 64
    rope = {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 2e6}
    config = SmolLM3Config.from_dict({**tiny_model().config.to_dict(), "rope_parameters": rope})
    assert context_size(SmolLM3ForCausalLM(config)) == 160


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_gives_what_the_cpu_gives_with_dynamic_and_static_caches(dtype: torch.dtype) -> None:
    rows = [[5, 6, 7, 8, 9], [4], [11, 12, 13]]
    arguments: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": [], "pad_token_id": 0}
    config = tiny_model().config
    model = SmolLM3ForCausalLM(config).to(dtype).eval()
    model.load_state_dict(tiny_model().state_dict())
    on_cuda = SmolLM3ForCausalLM(config).to("cuda", dtype).eval()
    on_cuda.load_state_dict(model.state_dict())
    dynamic = on_cuda.generate(rows, **arguments)
    static = on_cuda.generate(rows, cache_implementation="static", **arguments)
    assert static.tolist() == dynamic.tolist()
    if dtype is torch.float32:
        assert dynamic.tolist() == model.generate(rows, **arguments).tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("quantized", [False, True])
def test_replayed_steps_on_cuda_give_what_plain_ones_give(quantized: bool, tmp_path: Path) -> None:
    config = SmolLM3Config.from_dict(tiny_model().config.to_dict() | {"hidden_size": 64, "head_dim": 16})
    SmolLM3ForCausalLM(config).save_pretrained(tmp_path)
    asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16") if quantized else None
    model = SmolLM3ForCausalLM.from_pretrained(
        tmp_path, dtype="bfloat16", device_map="cuda", quantization_config=asked
    ).eval()
    runners = TorchRunner(model), TorchRunner(model)
    assert runners[0].captured is not None
    runners[1].captured = None
    texts = [[3] * 6, [4] * 4, [9, 8, 7]]
    slots = [[runner.open(60) for _ in texts] for runner in runners]
    for runner, own in zip(runners, slots, strict=True):
        runner.forward([Row(slot, ids, 0) for slot, ids in zip(own, texts, strict=True)])
    for step in range(30):
        num = 1 + step % 3
        replayed, plain = (
            runner.forward([Row(own[i], [5 + step], len(texts[i])) for i in range(num)])
            for runner, own in zip(runners, slots, strict=True)
        )
        for ids in texts[:num]:
            ids.append(5 + step)
        torch.testing.assert_close(replayed, plain, atol=0.05, rtol=0.05)


def test_a_kept_past_is_copied_for_a_sequence_that_begins_alike() -> None:
    model = tiny_model()
    ids = list(range(3, 33))
    fresh = TorchRunner(model)
    expected = fresh.forward([Row(fresh.open(60), ids, 0)])[0]
    runner = TorchRunner(model, max_kept_tokens=50)
    first = runner.open(60)
    assert runner.reuse(first, ids) == 0
    runner.forward([Row(first, ids, 0)])
    runner.close(first, ids, "a")
    busy = runner.open(60)
    runner.forward([Row(busy, [7] * 5, 0)])
    for beginning, salt, num in ((ids, "a", 29), ([*ids[:20], 1, *ids], "a", 20), (ids, "b", 0)):
        slot = runner.open(60)
        assert runner.reuse(slot, beginning, salt) == num
        rest = runner.forward([Row(slot, ids[num:], num)])[0]
        torch.testing.assert_close(rest, expected)
        runner.close(slot)
    second = runner.open(60)
    runner.forward([Row(second, [8] * 40, 0)])
    runner.close(second, [8] * 40, "a")  # over the limit together: the first one goes
    slot = runner.open(60)
    assert runner.reuse(slot, ids, "a") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_past_can_be_saved_and_given_to_another_torch_runner(dtype: torch.dtype) -> None:
    model = copy.deepcopy(tiny_model()).to(dtype)
    ids = list(range(3, 33))
    runner = TorchRunner(model)
    slot = runner.open(60)
    expected = runner.forward([Row(slot, ids, 0)])[0]
    saved = runner.export_past(slot, 25)
    other = TorchRunner(model, max_kept_tokens=60)
    other.import_past(ids[:25], saved, "s")
    slot = other.open(60)
    assert other.reuse(slot, ids, "s") == 25
    torch.testing.assert_close(other.forward([Row(slot, ids[25:], 25)])[0], expected)
    with pytest.raises(ParameterError, match="save it anew"):
        other.import_past(ids[:24], saved)
    with pytest.raises(ParameterError, match="max_kept_tokens"):
        runner.import_past(ids[:25], saved)


def test_a_draft_that_was_wrong_is_taken_back() -> None:
    model = tiny_model()
    ids = list(range(3, 33))
    plain = TorchRunner(model)
    slot = plain.open(60)
    expected = [plain.forward([Row(slot, ids[:20], 0)])[0]]
    expected += [plain.forward([Row(slot, [ids[i]], i)])[0] for i in range(20, 30)]
    for name, make in RUNNERS.items():
        runner = make(model)
        slot, other = runner.open(60), runner.open(60)
        assert len(runner.forward([Row(other, ids[:10], 0, 0), Row(slot, ids[:20], 0)])) == 1
        runner.forward([Row(slot, [*ids[20:23], 7, 8], 20, 5), Row(other, ids[10:12], 10, 0)])
        logits = runner.forward([Row(other, ids[12:20], 12, 1), Row(slot, ids[23:], 23, 7)])
        torch.testing.assert_close(logits, torch.stack([expected[0], *expected[4:]]), msg=name)
