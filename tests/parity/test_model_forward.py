"""Logits, losses and every gradient of random tiny models against transformers, in float32."""

import random
from typing import Any

import pytest
import torch
from model_oracle import assert_same_gradients, build_pair, random_batch, random_config

TOLERANCE = 1e-5
LAYOUTS = ("plain", "left", "right", "packed")


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(12))
def test_logits_loss_and_gradients_equal(seed: int, layout: str) -> None:
    rng = random.Random(f"{seed} {layout}")
    config = random_config(rng)
    # Where a query sees nothing (padding on the left), transformers' eager path differs from its own sdpa
    # path.
    theirs = "sdpa" if layout in ("left", "right") else rng.choice(["eager", "sdpa"])
    mine, reference = build_pair(config, ours=rng.choice(["eager", "sdpa"]), theirs=theirs)
    batch = random_batch(rng, config, layout)
    left = mine(**batch.inputs, labels=batch.labels, use_cache=False)
    right = reference(**batch.inputs, labels=batch.labels, use_cache=False)
    close(left.logits, right.logits)
    close(left.loss, right.loss)
    left.loss.backward()
    right.loss.backward()
    assert_same_gradients(mine, reference)


@pytest.mark.parametrize("rope_type", ["default", "linear", "dynamic", "yarn", "llama3"])
@pytest.mark.parametrize("seed", range(2))
def test_every_rope_type_equals_past_the_trained_length(rope_type: str, seed: int) -> None:
    from model_oracle import ROPE

    rng = random.Random(seed)
    settings = {"rope_type": rope_type, "rope_theta": 1e4, **ROPE[rope_type]}
    config = random_config(
        rng, rope_parameters=settings, max_position_embeddings=8, no_rope_layers=[1] * 8, num_hidden_layers=2
    )
    mine, reference = build_pair(config)
    ids = random_batch(rng, config, "plain", B=2, T=50).ids
    close(mine(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("seed", range(4))
def test_right_padding_equals_at_padding_too(seed: int) -> None:
    """A training loop that forgets to mask the labels of padding gets transformers' loss as well."""
    rng = random.Random(seed)
    config = random_config(rng)
    mine, reference = build_pair(config)
    batch = random_batch(rng, config, "right")
    close(mine(**batch.inputs).logits, reference(**batch.inputs).logits)
    close(mine(**batch.inputs, labels=batch.ids).loss, reference(**batch.inputs, labels=batch.ids).loss)


@pytest.mark.parametrize("seed", range(6))
def test_options_of_the_forward_pass(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    mine, reference = build_pair(config)
    batch = random_batch(rng, config, "right")
    T = batch.ids.shape[1]
    keep_idx = torch.tensor(sorted(rng.sample(range(T), 4)))
    options: list[dict[str, Any]] = [
        {"logits_to_keep": 1},
        {"logits_to_keep": 5},
        {"logits_to_keep": keep_idx},
        {"labels": batch.labels, "num_items_in_batch": torch.tensor(17)},
        {"labels": batch.labels, "num_items_in_batch": 11},
        {"labels": batch.labels, "shift_labels": batch.labels.roll(-2, dims=1)},
    ]
    for option in options:
        ours, theirs = mine(**batch.inputs, **option), reference(**batch.inputs, **option)
        close(ours.logits, theirs.logits)
        if theirs.loss is not None:
            close(ours.loss, theirs.loss)
    embedded = mine.model.embed_tokens(batch.ids)
    mask = batch.inputs["attention_mask"]
    ours = mine(inputs_embeds=embedded, attention_mask=mask)
    close(ours.logits, reference(inputs_embeds=embedded, attention_mask=mask).logits)
    close(ours.logits, mine(**batch.inputs).logits)


@pytest.mark.parametrize("seed", range(4))
def test_hidden_states_and_attentions_equal(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    mine, reference = build_pair(config, ours="eager", theirs="eager")
    batch = random_batch(rng, config, "right")
    ours = mine(**batch.inputs, output_hidden_states=True, output_attentions=True)
    theirs = reference(**batch.inputs, output_hidden_states=True, output_attentions=True)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == config.num_hidden_layers + 1
    assert len(ours.attentions) == len(theirs.attentions) == config.num_hidden_layers
    for left, right in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        close(left[batch.real], right[batch.real])
    for left, right in zip(ours.attentions, theirs.attentions, strict=True):
        assert left.shape == right.shape
        rows = batch.real[:, None, :, None].expand_as(left)
        close(left[rows], right[rows])
    base = mine.model(**batch.inputs)
    close(base.last_hidden_state, ours.hidden_states[-1])


def test_position_ids_of_the_caller_are_used() -> None:
    rng = random.Random(5)
    config = random_config(rng, no_rope_layers=[1, 1], num_hidden_layers=2, use_sliding_window=False)
    mine, reference = build_pair(config)
    batch = random_batch(rng, config, "left")
    positions = torch.arange(13)[None] * 2 + 7
    mask = batch.inputs["attention_mask"]
    ours = mine(batch.ids, mask, positions)
    close(ours.logits[batch.real], reference(batch.ids, mask, positions).logits[batch.real])
    assert not torch.allclose(ours.logits[batch.real], mine(batch.ids, mask).logits[batch.real])


@pytest.mark.parametrize("seed", range(6))
def test_a_llama_checkpoint_runs_as_smollm3(seed: int) -> None:
    """Same weights, same config.json: LlamaForCausalLM there, SmolLM3 without NoPE layers here."""
    import transformers

    from smollm3.model.config import SmolLM3Config
    from smollm3.model.smollm3 import SmolLM3ForCausalLM

    rng = random.Random(seed)
    llama_config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=rng.choice([1, 2, 4]),
        head_dim=rng.choice([8, 16]),
        rope_parameters={"rope_type": "default", "rope_theta": rng.choice([1e4, 1e5])},
        tie_word_embeddings=rng.random() < 0.5,
        attention_bias=rng.random() < 0.5,
        initializer_range=0.2,
        pad_token_id=2,
        rms_norm_eps=1e-5,
    )
    llama = transformers.LlamaForCausalLM(llama_config).eval()
    mine = SmolLM3ForCausalLM(SmolLM3Config.from_dict(llama_config.to_dict())).eval()
    mine.load_state_dict(llama.state_dict())
    ids = torch.randint(3, 60, (2, 20))
    close(mine(ids, labels=ids).logits, llama(ids).logits)
    close(mine(ids, labels=ids).loss, llama(ids, labels=ids).loss)
