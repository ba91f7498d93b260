"""Cached decoding, packed documents and low precision against transformers."""

import copy
import random

import pytest
import torch
from model_oracle import build_pair, random_batch, random_config

from smollm3.model.cache import DynamicCache, StaticCache

CHUNKS = (5, 3, 1, 1, 2, 1)  # prefill, a second chunk, single tokens, a chunk in between


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["plain", "left"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_decoding_step_by_step_equals_transformers_whole_pass(seed: int, static: bool, layout: str) -> None:
    rng = random.Random(f"{seed} {static} {layout}")
    config = random_config(rng)
    config.max_position_embeddings = 64  # beyond it the dynamic type turns cached keys by another angle
    mine, reference = build_pair(config, ours=rng.choice(["eager", "sdpa"]))
    batch = random_batch(rng, config, layout)
    mask = batch.inputs.get("attention_mask")
    # Left padding: transformers only counts from the first real token when told to.
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    theirs = reference(batch.ids, attention_mask=mask, position_ids=positions).logits
    cache = StaticCache(config, 20, batch_size=3) if static else DynamicCache()
    logits, start = [], 0
    for size in CHUNKS:
        ids = batch.ids[:, start : start + size]
        start += size
        out = mine(ids, mask[:, :start] if mask is not None else None, past_key_values=cache)
        assert out.past_key_values is cache
        assert cache.get_seq_length() == start
        logits.append(out.logits)
    close(torch.cat(logits, dim=1)[batch.real], theirs[batch.real])


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_packed_documents_do_not_leak(seed: int, use_cache: bool) -> None:
    """Each document gets what it gets alone; transformers agrees only while no cache is asked for."""
    rng = random.Random(seed)
    config = random_config(rng, num_hidden_layers=3, no_rope_layers=[1, 0, 1], use_sliding_window=False)
    mine, reference = build_pair(config)
    ids = random_batch(rng, config, "plain", B=1, T=12).ids
    lengths = [5, 1, 6]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = mine(ids, position_ids=positions, use_cache=use_cache).logits
    alone = torch.cat([mine(part).logits for part in ids.split(lengths, dim=1)], dim=1)
    close(packed, alone)
    theirs = reference(ids, position_ids=positions, use_cache=use_cache).logits
    assert torch.allclose(theirs, alone, atol=1e-5) == (not use_cache)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_bfloat16_is_as_close_to_float32_as_transformers_is(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(
        rng,
        num_hidden_layers=4,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        no_rope_layers=None,
    )
    mine, reference = build_pair(config, ours="eager", theirs="eager")
    ids = random_batch(rng, config, "plain", B=4, T=24).ids
    exact = reference(ids).logits
    reference_half = copy.deepcopy(reference).to(torch.bfloat16)
    # `.to` rounds transformers' angles, its from_pretrained does not.
    reference_half.model.rotary_emb = reference.model.rotary_emb
    theirs = reference_half(ids).logits.float()
    noise = (theirs - exact).abs()
    half = mine.to(torch.bfloat16)
    for implementation in ("eager", "sdpa"):
        half.set_attn_implementation(implementation)
        ours = half(ids).logits
        assert ours.dtype == torch.bfloat16
        error = (ours.float() - exact).abs()
        assert error.mean() <= 1.05 * noise.mean()
        assert error.max() <= 1.5 * noise.max()
    half.set_attn_implementation("eager")
    same = (half(ids).logits.float() == theirs).float().mean()
    assert same > 0.99, f"only {same:.3f} of the bf16 logits are bit-equal"
