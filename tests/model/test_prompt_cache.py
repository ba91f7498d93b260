"""Saved pasts of prompts: the same answers with them, sooner; files that do not fit are refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from smollm3.engine.runner import Row
from smollm3.errors import CheckpointError, ParameterError
from smollm3.model.native_runner import NativeRunner
from smollm3.model.prompt_cache import fingerprint, open_prompt_cache, save_prompt_cache
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import TorchRunner

IDS = [int(number) for number in torch.randint(5, 400, (150,), generator=torch.Generator().manual_seed(0))]


def tiny(**changes: Any) -> SmolLM3ForCausalLM:
    return tiny_model(
        SmolLM3ForCausalLM, **{"hidden_size": 64, "intermediate_size": 64, **changes}
    ).bfloat16()


@pytest.fixture(scope="module")
def model() -> SmolLM3ForCausalLM:
    return tiny()


@pytest.fixture
def saved(model: SmolLM3ForCausalLM, tmp_path: Path) -> Path:
    save_prompt_cache(tmp_path / "saved", model, NativeRunner(model), IDS)
    return tmp_path / "saved"


def answer(runner: NativeRunner, prompt_ids: list[int], num_new: int = 12) -> tuple[list[Tensor], int]:
    """Return the logits of greedy decoding, and how many of the prompt's ids came from the cache."""
    slot = runner.open(len(prompt_ids) + num_new)
    reused = runner.reuse(slot, prompt_ids)
    ids, start, logits = list(prompt_ids), reused, []
    for _ in range(num_new):
        logits.append(runner.forward([Row(slot, ids[start:], start)])[0])
        start = len(ids)
        ids.append(int(logits[-1].argmax()))
    runner.close(slot)
    return logits, reused


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("num_ids", [150, 128, 100])
def test_answers_are_the_same_with_the_past_loaded(
    model: SmolLM3ForCausalLM, tmp_path: Path, kv_bits: int, num_ids: int
) -> None:
    path = tmp_path / "saved"
    save_prompt_cache(path, model, NativeRunner(model, kv_bits=kv_bits), IDS[:num_ids])
    for question in ([9, 8, 7], IDS[num_ids : num_ids + 3] or [5]):
        prompt_ids = IDS[:num_ids] + question
        expected, reused = answer(NativeRunner(model, kv_bits=kv_bits), prompt_ids)
        assert reused == 0
        runner = NativeRunner(model, kv_bits=kv_bits)
        open_prompt_cache(path, model, kv_bits).load_into(runner)
        found, reused = answer(runner, prompt_ids)
        assert reused == num_ids
        assert all(map(torch.equal, found, expected)), "to the bit"
        assert answer(runner, [4, 4, *prompt_ids])[1] == 0, "another beginning"
    assert not list(tmp_path.glob(".*"))


def test_generate_begins_with_what_is_loaded(model: SmolLM3ForCausalLM, saved: Path) -> None:
    again = tiny()
    again.load_state_dict(model.state_dict())
    prompt = torch.tensor([[*IDS, 9, 8]])
    again.prompt_caches = [open_prompt_cache(saved, again)]
    assert (
        again.generate(prompt, max_new_tokens=8).tolist() == model.generate(prompt, max_new_tokens=8).tolist()
    )
    short = torch.tensor([IDS[:3]])
    assert (
        again.generate(short, max_new_tokens=8).tolist() == model.generate(short, max_new_tokens=8).tolist()
    )


def test_a_chat_begins_with_what_is_loaded(saved: Path) -> None:
    again = tiny()
    again.prompt_caches = [open_prompt_cache(saved, again)]
    outputs = list(again.stream([*IDS, 9], max_new_tokens=3, runner=again.new_runner()))
    assert [output.num_reused for output in outputs] == [len(IDS)] * 3
    outputs = list(again.stream([*IDS, 9], max_new_tokens=3))
    assert [output.num_reused for output in outputs] == [len(IDS)] * 3


def test_a_past_is_found_under_each_of_its_salts(model: SmolLM3ForCausalLM, saved: Path) -> None:
    runner = NativeRunner(model)
    open_prompt_cache(saved, model).load_into(runner, ("a", "b"))
    for salt, num in (("a", 150), ("b", 150), ("", 0)):
        slot = runner.open(300)
        assert runner.reuse(slot, [*IDS, 9], salt) == num
        runner.close(slot)


def test_the_fingerprint_tells_models_apart(model: SmolLM3ForCausalLM) -> None:
    assert fingerprint(tiny()) == fingerprint(model)
    others = [tiny(seed=1), tiny(rms_norm_eps=1e-3), tiny(rope_theta=5e5), tiny(no_rope_layers=[1] * 4)]
    assert len({fingerprint(other) for other in (model, *others)}) == 5


def test_another_model_and_other_settings_are_refused(model: SmolLM3ForCausalLM, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="was made with another model: save it anew"):
        open_prompt_cache(saved, tiny(seed=1))
    with pytest.raises(CheckpointError, match="kv_bits '16', not '8'"):
        open_prompt_cache(saved, model, 8)
    with pytest.raises(ParameterError, match="native engine"):
        open_prompt_cache(saved, tiny().float())
    with pytest.raises(ParameterError, match="native engine"):
        open_prompt_cache(saved, model).load_into(TorchRunner(model))
    with pytest.raises(CheckpointError, match="no room"):
        open_prompt_cache(saved, model).load_into(NativeRunner(model, max_cache_tokens=64))
    for num in (0, 511):
        with pytest.raises(ParameterError, match=f"has {num} tokens"):
            save_prompt_cache(saved, model, NativeRunner(model), [5] * num)


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file's header."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def _rename(header: dict[str, Any]) -> None:
    header["past.other"] = header.pop("past.blocks")


def _flatten(header: dict[str, Any]) -> None:
    blocks = header["past.blocks"]["shape"]
    header["past.blocks"]["shape"] = [1, blocks[0] * blocks[1]]


HEADERS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda header: header.pop("__metadata__"), "is no prompt cache"),
    (lambda header: header["__metadata__"].update(format="pt"), "is no prompt cache"),
    (lambda header: header["__metadata__"].update(version="9"), "version '9'"),
    (lambda header: header["__metadata__"].update(model="0"), "another model"),
    (lambda header: header["token_ids"].update(dtype="F32"), "no list of ids"),
    (lambda header: header.update(ids=header.pop("token_ids")), "no list of ids"),
    (lambda header: header.update(more=header.pop("past.blocks")), "tensors that no prompt cache has"),
    (lambda header: header["past.blocks"].update(data_offsets=[0, 10**15]), "does not fill"),
    (_rename, "is missing"),
    (_flatten, r"is uint8 \(1, "),
]


@pytest.mark.parametrize(("change", "said"), HEADERS, ids=[said for _, said in HEADERS])
def test_a_forged_header_is_refused_and_nothing_is_kept(
    model: SmolLM3ForCausalLM, saved: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    _edit(saved, change)
    runner = NativeRunner(model)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_prompt_cache(saved, model).load_into(runner)
    assert "\n" not in str(caught.value)
    assert answer(runner, [*IDS, 9])[1] == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "truncated"),
        (lambda raw: raw + b"more", "after its last"),
        (lambda raw: b"\x80\x04.", "truncated or no safetensors"),
        (lambda raw: raw.replace(struct.pack("<2i", *IDS[:2]), struct.pack("<2i", 400, 3)), "does not know"),
        (lambda raw: raw.replace(struct.pack("<2i", *IDS[:2]), struct.pack("<2i", -1, 3)), "does not know"),
    ],
)
def test_a_damaged_file_is_refused(
    model: SmolLM3ForCausalLM, saved: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    raw = saved.read_bytes()
    saved.write_bytes(damage(raw))
    assert saved.read_bytes() != raw
    with pytest.raises(CheckpointError, match=said):
        open_prompt_cache(saved, model)


def test_a_file_that_cannot_be_written_leaves_nothing(model: SmolLM3ForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_prompt_cache(tmp_path / "none" / "saved", model, NativeRunner(model), IDS[:5])
    assert not list(tmp_path.iterdir())
