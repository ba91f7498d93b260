"""The model's own promises: its parameters, its outputs, how it trains, and what it refuses."""

import random
from typing import Any

import pytest
import torch
from tiny_models import MODEL_CLASSES
from tiny_rows import close, ids_of, model, padded, tiny
from torch import Tensor

from smollm3.errors import DeviceError, ParameterError
from smollm3.model.cache import DynamicCache
from smollm3.model.config import SmolLM3Config
from smollm3.model.heads import (
    SmolLM3ForQuestionAnswering,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
)
from smollm3.model.smollm3 import SmolLM3ForCausalLM


def test_no_rope_layers_do_not_see_positions_and_rope_layers_do() -> None:
    ids, far = ids_of(5)[0], torch.arange(5)[None] * 3
    without, with_rope = model(no_rope_layers=[0] * 4), model(no_rope_layers=[0, 0, 1, 0])
    close(without(ids, position_ids=far).logits, without(ids).logits)
    assert not torch.allclose(with_rope(ids, position_ids=far).logits, with_rope(ids).logits, atol=1e-3)


@pytest.mark.parametrize("cls", MODEL_CLASSES)
def test_gradient_checkpointing_changes_nothing_but_memory(cls: Any) -> None:
    torch.manual_seed(0)
    net = cls(tiny(classifier_dropout=0.0)).train()
    ids, mask = padded(ids_of(7, 5), "right")

    def run() -> dict[str, Tensor]:
        net.zero_grad()
        first = net(ids, mask).to_tuple()[0]
        first.pow(2).sum().backward()
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    plain = run()
    net.gradient_checkpointing_enable()
    calls = []
    layer = net.base_model.layers[0].self_attn
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    for name, gradient in run().items():
        assert torch.equal(gradient, plain[name]), name
    assert len(calls) == 2  # once forwards, once again for the backward pass
    net.gradient_checkpointing_disable()
    run()
    assert len(calls) == 3
    hook.remove()


def test_checkpointing_and_caches_exclude_each_other() -> None:
    lm = model().train()
    lm.gradient_checkpointing_enable()
    ids = ids_of(4)[0]
    assert lm(ids).past_key_values is None
    for given in ({"use_cache": True}, {"past_key_values": DynamicCache()}):
        with pytest.raises(ParameterError, match="cannot fill a cache"):
            lm(ids, **given)
    lm.eval()
    assert lm(ids, use_cache=True).past_key_values.get_seq_length() == 4


def test_caches_are_returned_when_asked_for() -> None:
    lm, ids = model(), ids_of(4)[0]
    assert lm(ids).past_key_values.get_seq_length() == 4
    assert lm(ids, use_cache=False).past_key_values is None
    assert lm.train()(ids).past_key_values is None
    assert lm(ids, use_cache=True).past_key_values.get_seq_length() == 4
    assert model(use_cache=False)(ids).past_key_values is None


@pytest.mark.parametrize("cls", MODEL_CLASSES)
def test_built_on_the_meta_device_and_filled_later(cls: Any) -> None:
    torch.manual_seed(0)
    real = cls(tiny()).eval()
    with torch.device("meta"):
        empty = cls(tiny()).eval()
    assert all(p.is_meta for p in empty.parameters())
    assert all(b.is_meta for b in empty.buffers())
    assert empty.state_dict().keys() == real.state_dict().keys()
    empty.load_state_dict(real.state_dict(), assign=True)
    empty.tie_weights()
    empty.reset_buffers_("cpu")
    ids = ids_of(5)[0]
    close(empty(ids).to_tuple()[0], real(ids).to_tuple()[0], 0)
    with torch.device("meta"):
        other = cls(tiny()).eval()
    other.to_empty(device="cpu")
    other.load_state_dict(real.state_dict())
    close(other(ids).to_tuple()[0], real(ids).to_tuple()[0], 0)


def test_parameter_names_are_the_checkpoints() -> None:
    names = set(model(tie_word_embeddings=False).state_dict())
    per_layer = {
        f"model.layers.{i}.{part}.weight"
        for i in range(4)
        for part in (
            "input_layernorm",
            "post_attention_layernorm",
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        )
    }
    assert names == per_layer | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_tied_embeddings_are_one_parameter() -> None:
    tied, untied = model(), model(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 64 * 32


def test_the_released_model_has_the_released_size() -> None:
    with torch.device("meta"):
        lm = SmolLM3ForCausalLM(SmolLM3Config(max_position_embeddings=65536, rope_theta=5e6))
    assert sum(p.numel() for p in lm.parameters()) == 3_075_098_624
    assert len(list(lm.parameters())) == 326


def test_initial_weights() -> None:
    torch.manual_seed(0)
    lm = SmolLM3ForCausalLM(tiny(hidden_size=64, attention_bias=True, initializer_range=0.05))
    assert lm.model.layers[0].self_attn.q_proj.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert lm.model.embed_tokens.weight[0].abs().sum() == 0  # the pad row
    assert lm.model.layers[0].self_attn.q_proj.bias.abs().sum() == 0
    assert torch.equal(lm.model.norm.weight, torch.ones(64))
    before = lm.lm_head.weight.clone()
    lm.init_weights_()
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    assert not torch.equal(before, lm.lm_head.weight)


def test_angles_stay_in_float32_whatever_the_dtype() -> None:
    lm = model()
    exact = lm.model.rotary_emb.inv_freq.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        lm.to(dtype)
        assert torch.equal(lm.model.rotary_emb.inv_freq, exact)
        assert lm(ids_of(3)[0]).logits.dtype == dtype


def test_attention_dropout_acts_in_training_only() -> None:
    lm, ids = model(attention_dropout=0.5), ids_of(6)[0]
    assert torch.equal(lm(ids).logits, lm(ids).logits)
    lm.train()
    assert not torch.equal(lm(ids).logits, lm(ids).logits)


def test_outputs_as_tuples() -> None:
    lm, ids = model(return_dict=False), ids_of(4)[0]
    loss, logits, cache, states = lm(ids, labels=ids, output_hidden_states=True)
    assert loss.dim() == 0
    assert logits.shape == (1, 4, 64)
    assert cache.get_seq_length() == 4
    assert len(states) == 5
    assert lm(ids, return_dict=True).logits.shape == (1, 4, 64)
    config_asks = model(output_hidden_states=True)
    assert len(config_asks(ids).hidden_states) == 5


def test_loss_without_labels_takes_shifted_ones() -> None:
    lm, ids = model(), ids_of(5)[0]
    shifted = torch.cat((ids[:, 1:], torch.tensor([[-100]])), 1)
    close(lm(ids, shift_labels=shifted).loss, lm(ids, labels=ids).loss)


def test_misuse_gets_one_line() -> None:
    lm, ids = model(), ids_of(4)[0]
    with pytest.raises(ParameterError, match="exactly one of input_ids and inputs_embeds"):
        lm()
    with pytest.raises(ParameterError, match="exactly one"):
        lm(ids, inputs_embeds=torch.zeros(1, 4, 32))
    with pytest.raises(ParameterError, match=r"sdpa computes no attention weights.*'eager'"):
        lm(ids, output_attentions=True)
    with pytest.raises(ParameterError, match=r"shape \[1, 3\]"):
        lm(ids, attention_mask=torch.ones(1, 3))
    with pytest.raises(
        DeviceError, match=r"flash_attention_2 needs a CUDA device.*pass attn_implementation='sdpa'"
    ):
        lm.set_attn_implementation("flash_attention_2")
    assert lm.attn_implementation == "sdpa"
    flash = SmolLM3ForCausalLM(tiny(attn_implementation="flash_attention_2"))
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        flash(ids)


@pytest.mark.parametrize("cls", MODEL_CLASSES)
def test_every_class_learns(cls: Any) -> None:
    """One parameter group, a few steps: the loss of a fixed batch falls, so gradients reach everything."""
    torch.manual_seed(0)
    net = cls(tiny(num_labels=3, classifier_dropout=0.0)).train()
    ids, mask = padded(ids_of(6, 4), "right", fill=0)
    labels: dict[str, Any] = {
        SmolLM3ForCausalLM: {"labels": ids.masked_fill(mask == 0, -100)},
        SmolLM3ForSequenceClassification: {"labels": torch.tensor([0, 2])},
        SmolLM3ForTokenClassification: {"labels": ids % 3},
        SmolLM3ForQuestionAnswering: {
            "start_positions": torch.tensor([1, 0]),
            "end_positions": torch.tensor([3, 2]),
        },
    }.get(cls, {})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        out = net(ids, mask, **labels)
        loss = out.loss if labels else out.last_hidden_state.pow(4).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_random_seeds_of_python_are_left_alone() -> None:
    random.seed(1)
    state = random.getstate()
    model()
    assert random.getstate() == state
