"""From the tensors of a checkpoint to a model: names, heads, ties, shapes, dtypes, and what is refused."""

import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import CAUSAL, edit_config, write_checkpoint
from tiny_models import MODEL_CLASSES, tiny_model
from torch import Tensor

from smollm3.checkpoint.safetensors import SafetensorsFile
from smollm3.checkpoint.source import SafetensorsCheckpoint
from smollm3.errors import CheckpointError, DeviceError
from smollm3.model.heads import (
    SmolLM3ForQuestionAnswering,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
)
from smollm3.model.smollm3 import SmolLM3ForCausalLM, SmolLM3Model

HEADS = MODEL_CLASSES[2:]
Tensors = dict[str, Tensor]
IDS = torch.arange(4, 16)[None]


def tensors_of(model: torch.nn.Module) -> Tensors:
    """Copies of the model's tensors under their stored names, tied ones once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def base_tensors(seed: int = 3) -> Tensors:
    return tensors_of(tiny_model(SmolLM3Model, seed=seed))


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="smollm3")
    return lambda: [record.getMessage() for record in caplog.records]


# Names


@pytest.mark.parametrize("model_class", MODEL_CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("prefix", ["", "model.", "transformer."])
def test_the_base_is_found_under_every_prefix(prefix: str, model_class: Any, tmp_path: Path) -> None:
    stored = base_tensors()
    folder = write_checkpoint(
        tmp_path, {prefix + name: t for name, t in stored.items()}, made_for="SmolLM3Model"
    )
    model = model_class.from_pretrained(folder)
    loaded = tensors_of(model.base_model)
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frequencies_that_old_files_store_are_computed_instead(tmp_path: Path) -> None:
    stored = base_tensors()
    wrong = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "rotary_emb.inv_freq": torch.ones(4),
    }
    plain = SmolLM3Model.from_pretrained(write_checkpoint(tmp_path / "a", stored))
    odd = SmolLM3Model.from_pretrained(write_checkpoint(tmp_path / "b", stored | wrong))
    assert torch.equal(odd.rotary_emb.inv_freq, plain.rotary_emb.inv_freq)
    assert torch.equal(odd(IDS).last_hidden_state, plain(IDS).last_hidden_state)


# Heads


@pytest.mark.parametrize("model_class", HEADS, ids=lambda kind: kind.__name__)
def test_a_new_head_starts_fresh_in_one_warning(
    model_class: Any, tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    folder = write_checkpoint(tmp_path, tensors_of(tiny_model(SmolLM3ForCausalLM)))
    torch.manual_seed(11)
    model = model_class.from_pretrained(folder, num_labels=3)
    head = {name: t for name, t in model.named_parameters() if name.startswith(("score.", "qa_outputs."))}
    assert warned() == [f"{model_class.__name__}: newly initialised, train before use: {', '.join(head)}"]
    weight = next(t for name, t in head.items() if name.endswith("weight"))
    assert weight.shape == (2 if model_class is SmolLM3ForQuestionAnswering else 3, 32)
    assert 0.2 < weight.std() < 0.6  # the tiny config's initializer_range is 0.4
    assert all(not t.any() for name, t in head.items() if name.endswith("bias"))
    assert all(t.requires_grad for t in head.values())
    torch.manual_seed(11)
    half = model_class.from_pretrained(folder, num_labels=3, dtype="bfloat16")
    assert torch.equal(next(t for n, t in half.named_parameters() if n in head), weight.bfloat16())


def test_a_language_model_comes_back_from_a_classifier(
    tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    causal = tiny_model(SmolLM3ForCausalLM)
    causal.save_pretrained(tmp_path / "causal")
    SmolLM3ForSequenceClassification.from_pretrained(tmp_path / "causal", num_labels=3).save_pretrained(
        tmp_path / "classifier"
    )
    before = len(warned())
    back = SmolLM3ForCausalLM.from_pretrained(tmp_path / "classifier")
    assert torch.equal(back(IDS).logits, causal(IDS).logits)
    assert warned()[before:] == [f"{tmp_path / 'classifier'}: not used by SmolLM3ForCausalLM: score.weight"]


def test_a_trained_head_is_loaded_without_a_word(tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    model = tiny_model(SmolLM3ForTokenClassification, num_labels=5)
    model.save_pretrained(tmp_path)
    loaded = SmolLM3ForTokenClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.score.weight, model.score.weight)
    assert loaded.config.num_labels == 5
    assert warned() == []


def test_a_head_of_another_kind_gives_the_part_that_fits(
    tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    model = tiny_model(SmolLM3ForSequenceClassification, num_labels=3)
    model.save_pretrained(tmp_path)
    loaded = SmolLM3ForTokenClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.score.weight, model.score.weight)
    assert warned() == ["SmolLM3ForTokenClassification: newly initialised, train before use: score.bias"]


@pytest.mark.parametrize(
    ("model_class", "head"), [(SmolLM3ForCausalLM, "lm_head.weight"), (HEADS[0], "score.weight")]
)
def test_a_head_that_the_checkpoint_was_made_for_must_be_there(
    model_class: Any, head: str, tmp_path: Path
) -> None:
    model = tiny_model(model_class, tie_word_embeddings=False)
    stored = {name: t for name, t in tensors_of(model).items() if name != head}
    folder = write_checkpoint(tmp_path, stored, made_for=model_class.__name__, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=f"lacks 1 of the .* '{head}'"):
        model_class.from_pretrained(folder)


def test_an_untied_language_head_starts_fresh_over_a_base_model(
    tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    folder = write_checkpoint(tmp_path, base_tensors(), made_for="SmolLM3Model", tie_word_embeddings=False)
    model = SmolLM3ForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert 0.3 < model.lm_head.weight.std() < 0.5
    assert warned() == ["SmolLM3ForCausalLM: newly initialised, train before use: lm_head.weight"]


def test_a_subclass_of_a_users_own_loads_as_its_parent(tmp_path: Path) -> None:
    class Mine(SmolLM3ForCausalLM):
        pass

    stored = tensors_of(tiny_model(SmolLM3ForCausalLM, tie_word_embeddings=False))
    del stored["lm_head.weight"]
    folder = write_checkpoint(tmp_path, stored, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="lm_head"):
        Mine.from_pretrained(folder)


# Shapes of heads


@pytest.mark.parametrize("model_class", HEADS[:2], ids=lambda kind: kind.__name__)
def test_a_head_of_another_size_starts_fresh_only_when_asked(
    model_class: Any, tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    tiny_model(model_class, num_labels=5).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'score.*' has the shape \(5.*ignore_mismatched_sizes=True"):
        model_class.from_pretrained(tmp_path, num_labels=3)
    loaded = model_class.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert loaded.score.weight.shape == (3, 32)
    assert loaded(IDS).logits.shape[-1] == 3
    assert len(warned()) == 1
    assert "score.weight" in warned()[0]


def test_ignoring_sizes_never_covers_the_body(tmp_path: Path) -> None:
    stored = base_tensors()
    stored["layers.1.mlp.up_proj.weight"] = torch.ones(47, 32)
    folder = write_checkpoint(tmp_path, stored)
    with pytest.raises(
        CheckpointError, match=r"up_proj.weight' has the shape \(47, 32\), its config asks for"
    ):
        SmolLM3Model.from_pretrained(folder, ignore_mismatched_sizes=True)


# Ties


def causal_with_head(
    head: Tensor | None, folder: Path, *, tied: bool = True, drop_embedding: bool = False
) -> Path:
    stored = tensors_of(tiny_model(SmolLM3ForCausalLM))
    if head is not None:
        stored["lm_head.weight"] = head
    if drop_embedding:
        del stored["model.embed_tokens.weight"]
    return write_checkpoint(folder, stored, tie_word_embeddings=tied)


def embedding() -> Tensor:
    return tiny_model(SmolLM3ForCausalLM).model.embed_tokens.weight.detach().clone()


@pytest.mark.parametrize("stored", ["absent", "present"])
def test_a_tied_head_is_the_embedding(stored: str, tmp_path: Path) -> None:
    folder = causal_with_head(embedding() if stored == "present" else None, tmp_path)
    model = SmolLM3ForCausalLM.from_pretrained(folder, dtype="bfloat16")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, embedding().bfloat16())


def test_an_untied_head_stays_apart(tmp_path: Path) -> None:
    folder = causal_with_head(embedding() + 1, tmp_path, tied=False)
    model = SmolLM3ForCausalLM.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, embedding() + 1)
    assert torch.equal(model.model.embed_tokens.weight, embedding())


@pytest.mark.parametrize("head", [embedding() + 1, embedding()[:399], embedding().bfloat16()])
def test_a_tied_head_that_differs_is_an_error_with_a_way_out(head: Tensor, tmp_path: Path) -> None:
    folder = causal_with_head(head, tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_head.weight' that differs.*tie_word_embeddings=False"):
        SmolLM3ForCausalLM.from_pretrained(folder)
    if head.shape == embedding().shape:
        model = SmolLM3ForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
        assert torch.equal(model.lm_head.weight, head.float())
    assert torch.equal(SmolLM3Model.from_pretrained(folder).embed_tokens.weight, embedding())


@pytest.mark.parametrize("model_class", MODEL_CLASSES, ids=lambda kind: kind.__name__)
def test_of_a_tied_pair_the_head_alone_is_enough(model_class: Any, tmp_path: Path) -> None:
    folder = causal_with_head(embedding(), tmp_path, drop_embedding=True)
    model = model_class.from_pretrained(folder)
    assert torch.equal(model.get_input_embeddings().weight, embedding())


def test_an_untied_head_is_no_embedding(tmp_path: Path) -> None:
    folder = causal_with_head(embedding(), tmp_path, tied=False, drop_embedding=True)
    with pytest.raises(CheckpointError, match=r"lacks 1 of the .*embed_tokens"):
        SmolLM3ForCausalLM.from_pretrained(folder)


# Dtypes and pages


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("asked", [None, torch.float32, torch.bfloat16, torch.float16])
def test_values_are_those_of_a_cast(stored: torch.dtype, asked: torch.dtype | None, tmp_path: Path) -> None:
    tensors = {name: t.to(stored) for name, t in base_tensors().items()}
    model = SmolLM3Model.from_pretrained(write_checkpoint(tmp_path, tensors), dtype=asked)
    assert model.dtype == (asked or stored)
    assert model.rotary_emb.inv_freq.dtype == torch.float32
    for name, tensor in tensors.items():
        assert torch.equal(model.get_parameter(name), tensor.to(asked or stored)), name


def test_training_a_mapped_model_leaves_its_file_alone(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tensors_of(tiny_model(SmolLM3ForCausalLM)))
    before = (folder / "model.safetensors").read_bytes()
    model = SmolLM3ForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert not torch.equal(model.model.embed_tokens.weight, embedding())
    assert (folder / "model.safetensors").read_bytes() == before
    assert torch.equal(SmolLM3ForCausalLM.from_pretrained(folder).model.embed_tokens.weight, embedding())


# What is refused


def _wrong_shape(stored: Tensors) -> None:
    stored["model.layers.2.self_attn.k_proj.weight"] = torch.ones(32, 16)


def _missing(stored: Tensors) -> None:
    del stored["model.layers.3.mlp.down_proj.weight"], stored["model.norm.weight"]


def _unknown(stored: Tensors) -> None:
    stored["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)


def _layer_too_many(stored: Tensors) -> None:
    stored["model.layers.4.input_layernorm.weight"] = torch.ones(32)


def _bias(stored: Tensors) -> None:
    stored["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)


def _twice(stored: Tensors) -> None:
    stored["norm.weight"] = torch.ones(32)


def _integers(stored: Tensors) -> None:
    stored["model.norm.weight"] = torch.ones(32, dtype=torch.int64)


REFUSED: list[tuple[Callable[[Tensors], None], str]] = [
    (_wrong_shape, r"model.safetensors: 'model.layers.2.self_attn.k_proj.weight' has the shape \(32, 16\), "),
    (_missing, r"lacks 2 of the 38 tensors of SmolLM3ForCausalLM, the first 'model.layers.3.mlp.down_proj"),
    (
        _unknown,
        "model.safetensors holds 'model.layers.0.self_attn.q_norm.weight', for which the model has no",
    ),
    (_layer_too_many, "model.safetensors holds 'model.layers.4.input_layernorm.weight', for which"),
    (_bias, "model.safetensors holds 'model.layers.0.self_attn.q_proj.bias', for which"),
    (_twice, "model.safetensors holds '(model.)?norm.weight' once more under another prefix"),
    (_integers, "model.safetensors: 'model.norm.weight' holds torch.int64"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=lambda case: getattr(case, "__name__", ""))
def test_what_does_not_fit_is_one_line_before_a_tensor_is_read(
    spoil: Callable[[Tensors], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tensors_of(tiny_model(SmolLM3ForCausalLM))
    spoil(stored)
    folder = write_checkpoint(tmp_path, stored)

    def never(*_: object) -> Tensor:
        pytest.fail("a tensor was read")

    monkeypatch.setattr(SafetensorsFile, "load", never)
    with pytest.raises(CheckpointError, match=message) as caught:
        SmolLM3ForCausalLM.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    tiny_model(SmolLM3ForCausalLM).save_pretrained(tmp_path, max_shard_size="40KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=f"{gone.name} is missing"):
        SmolLM3ForCausalLM.from_pretrained(tmp_path)


def test_a_device_without_room_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines")

    folder = write_checkpoint(tmp_path, base_tensors())
    monkeypatch.setattr(SafetensorsCheckpoint, "load", full)
    with pytest.raises(DeviceError, match=r"no room for .* in float32: choose a smaller dtype") as caught:
        SmolLM3Model.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_no_code_and_no_network_for_what_a_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path, tensors_of(tiny_model(SmolLM3ForCausalLM)))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_config(
        folder,
        auto_map={"AutoModelForCausalLM": "evil.Model"},
        trust_remote_code=True,
        _attn_implementation="someone/kernel",
        _attn_implementation_internal="someone/kernel",
        attn_implementation="someone/kernel",
    )

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a local folder asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = SmolLM3ForCausalLM.from_pretrained(folder)
    assert model.attn_implementation == "sdpa"
    assert not (tmp_path / "ran").exists()
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert not {name for name in saved if "auto_map" in name or "remote" in name or "attn_impl" in name}


def test_a_checkpoint_that_names_no_class_counts_as_a_language_model(tmp_path: Path) -> None:
    stored = tensors_of(tiny_model(SmolLM3ForCausalLM, tie_word_embeddings=False))
    del stored["lm_head.weight"]
    folder = write_checkpoint(tmp_path, stored, made_for=None, tie_word_embeddings=False)
    assert CAUSAL not in (folder / "config.json").read_text()
    with pytest.raises(CheckpointError, match="lm_head"):
        SmolLM3ForCausalLM.from_pretrained(folder)
