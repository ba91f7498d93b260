"""GPTQ of a model: every layer on what the packed layers before it give; better on texts not seen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn

from smollm3.errors import CheckpointError, ParameterError
from smollm3.model.heads import SmolLM3ForSequenceClassification
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.native.quantize import layout_of, quantize
from smollm3.quantization import gptq_model as module
from smollm3.quantization.gptq import gptq
from smollm3.quantization.gptq_model import gptq_
from smollm3.quantization.packed import PackedEmbedding, PackedLinear
from smollm3.quantization.packed_config import PackedConfig

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "initializer_range": 0.15
}  # fmt: skip
INT4 = PackedConfig("int4", 32)


def model(**changes: Any) -> SmolLM3ForCausalLM:
    return tiny_model(SmolLM3ForCausalLM, **{**SIZES, **changes})


def windows(count: int, seed: int = 0, length: int = 64) -> list[Tensor]:
    """Ids that are not all as likely, in windows [1, T]."""
    generator = torch.Generator().manual_seed(seed)
    odds = torch.logspace(0, -2, 390)
    return [torch.multinomial(odds, length, True, generator=generator)[None] + 5 for _ in range(count)]


def nearest(plain: SmolLM3ForCausalLM, config: PackedConfig, tmp_path: Path) -> SmolLM3ForCausalLM:
    plain.save_pretrained(tmp_path / "plain")
    return SmolLM3ForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config)


@torch.no_grad()
def distance(one: SmolLM3ForCausalLM, other: SmolLM3ForCausalLM, texts: list[Tensor]) -> float:
    """Mean Kullback-Leibler divergence of the next id's distribution."""
    total = 0.0
    for ids in texts:
        p, q = (m(ids).logits.float().log_softmax(-1) for m in (one, other))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(texts)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "with minimum"])
def test_a_model_says_more_nearly_what_it_said(symmetric: bool, tmp_path: Path) -> None:
    config = PackedConfig("int4", 32, symmetric)
    original, changed = model(), model()
    rounded = nearest(model(), config, tmp_path)
    gptq_(changed, config, windows(24))
    held = windows(6, seed=1)
    assert distance(original, changed, held) < 0.9 * distance(original, rounded, held)


def test_each_layer_is_calibrated_on_the_packed_layers_before_it() -> None:
    """Layer by layer by hand: sums of the inputs that the changed model itself produces."""
    original, changed, texts = model(), model(), windows(3)
    gptq_(changed, INT4, texts)
    layout = layout_of("int4", 32)
    inputs: dict[str, Tensor] = {}
    for number, layer in enumerate(original.model.layers):
        # The layers before this one are those of the changed model; this one's matrices are still floats.
        mixed = model()
        for before in range(number):
            mixed.model.layers[before] = changed.model.layers[before]
        for name, linear in mixed.model.layers[number].named_modules():
            if isinstance(linear, nn.Linear):
                linear.register_forward_pre_hook(
                    lambda _, args, name=name: inputs.__setitem__(
                        name, inputs.get(name, 0) + args[0][0].T @ args[0][0]
                    )
                )
        inputs.clear()
        with torch.no_grad():
            for ids in texts:
                mixed(ids)
        for name, gram in inputs.items():
            expected = gptq(layer.get_submodule(name).weight, gram, layout).unpack()
            packed = changed.model.layers[number].get_submodule(name)
            assert isinstance(packed, PackedLinear)
            agree = torch.from_numpy(expected) == packed.dequantize()
            assert agree.float().mean() > 0.99, f"{number}.{name}"


def test_embedding_and_head_are_rounded_to_nearest(tmp_path: Path) -> None:
    for tied in (True, False):
        changed = model(tie_word_embeddings=tied)
        expected = nearest(model(tie_word_embeddings=tied), INT4, tmp_path)
        gptq_(changed, INT4, windows(2))
        assert isinstance(changed.model.embed_tokens, PackedEmbedding)
        assert isinstance(changed.lm_head, PackedLinear)
        for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
            assert torch.equal(changed.state_dict()[name], expected.state_dict()[name]), name
        assert (changed.lm_head.weight is changed.model.embed_tokens.weight) == tied
    kept = model()
    gptq_(kept, PackedConfig("int4", 32, head=None), windows(2))
    assert type(kept.model.embed_tokens) is nn.Embedding
    assert type(kept.lm_head) is nn.Linear


def test_it_saves_and_loads_as_any_packed_model(tmp_path: Path) -> None:
    changed = model(attention_bias=True, mlp_bias=True, no_rope_layers=[1, 1, 1]).bfloat16()
    for name, parameter in changed.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    biases = {name: x.clone() for name, x in changed.state_dict().items() if name.endswith("bias")}
    gptq_(changed, INT4, windows(2))
    assert changed.dtype == torch.bfloat16
    assert {p.dtype for p in changed.parameters()} == {torch.bfloat16, torch.uint8}
    changed.save_pretrained(tmp_path)
    again = SmolLM3ForCausalLM.from_pretrained(tmp_path)
    assert again.config.quantization_config == INT4.to_dict()
    for name, tensor in changed.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    for name, bias in biases.items():
        assert torch.equal(again.state_dict()[name], bias)
    ids = torch.tensor([[5, 9, 11]])
    out = again.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(out, changed.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None))


def test_a_classifiers_score_stays() -> None:
    classifier = tiny_model(SmolLM3ForSequenceClassification, num_labels=3, **SIZES)
    score = classifier.score.weight.clone()
    gptq_(classifier, INT4, windows(2))
    assert torch.equal(classifier.score.weight, score)
    packed = [m for m in classifier.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == 3 * 7


def test_layers_on_one_input_share_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k and v; gate and up: four sums, not seven, and no more than one layer's at a time."""
    sums: list[set[int]] = []
    plain = module._grams

    def watch(*args: Any) -> dict[str, Tensor]:
        found = plain(*args)
        sums.append({x.data_ptr() for x in found.values()})
        assert found["self_attn.q_proj"] is found["self_attn.k_proj"] is found["self_attn.v_proj"]
        assert found["mlp.gate_proj"] is found["mlp.up_proj"]
        return found

    monkeypatch.setattr(module, "_grams", watch)
    gptq_(model(), INT4, windows(2))
    assert [len(found) for found in sums] == [4, 4, 4]


def test_what_cannot_be_calibrated_is_said() -> None:
    with pytest.raises(ParameterError, match="GPTQ rounds to int4, not to nf4"):
        gptq_(model(), PackedConfig("nf4"), windows(1))
    with pytest.raises(ParameterError, match="needs token ids"):
        gptq_(model(), INT4, [])
    with pytest.raises(ParameterError, match="group_size=128 does not divide the 64 columns"):
        gptq_(model(), PackedConfig("int4", 128), windows(1))
    broken = model()
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\..*_proj' has inputs that are NaN|up_proj' holds NaN"
    ):
        gptq_(broken, INT4, windows(1))


# The trained model


def test_on_a_trained_layer_outputs_stay_closer_on_text_not_seen(small_model: Path) -> None:
    """One layer of the 135M model: calibrated on one text, judged on another."""
    from smollm3.tokenization import SmolLM3Tokenizer

    trained = SmolLM3ForCausalLM.from_pretrained(small_model, dtype="float32")
    tokenizer = SmolLM3Tokenizer.from_pretrained(small_model)
    docs = Path(__file__).resolve().parents[2] / "docs"
    texts = [(docs / name).read_text(encoding="utf-8") for name in ("architecture.md", "cli.md")]
    ids = [torch.tensor([tokenizer.encode(text)[:1024]]) for text in texts]
    layer, layout = trained.model.layers[0], layout_of("int4", 64)
    sums = []
    for text in ids:
        with torch.no_grad():
            states, rest = module._first_states(trained, [text])
            sums.append(module._grams(layer, states, rest))
    better = {}
    for name, held in sums[1].items():
        weight = layer.get_submodule(name).weight.detach()
        errors = []
        for matrix in (gptq(weight, sums[0][name], layout), quantize(weight.numpy(), layout)):
            off = torch.from_numpy(matrix.unpack()) - weight
            errors.append(float(((off @ held) * off).sum()))
        better[name] = errors[0] / errors[1]
    assert max(better.values()) < 1.0, better
    assert sum(better.values()) / len(better) < 0.75, better
