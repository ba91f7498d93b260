"""Rows of ids: padding changes nothing, caches change nothing, documents do not leak."""

from typing import Any

import pytest
import torch
from tiny_rows import close, ids_of, model, padded

from smollm3.errors import ParameterError
from smollm3.model.cache import DynamicCache, StaticCache


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_row_equals_the_row_alone(side: str, implementation: str, window: int | None) -> None:
    lm = model(use_sliding_window=window is not None, sliding_window=window)
    lm.set_attn_implementation(implementation)
    rows = ids_of(9, 4, 1)
    ids, mask = padded(rows, side, fill=17)
    logits = lm(ids, mask).logits
    assert logits.isfinite().all()
    for i, row in enumerate(rows):
        close(logits[i, mask[i].bool()], lm(row).logits[0])


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_a_left_padded_batch_decodes_what_each_row_decodes_alone(static: bool) -> None:
    lm = model()
    rows, steps = ids_of(7, 2), 5
    ids, mask = padded(rows, "left")
    cache: Any = StaticCache(lm.config, 16, batch_size=2) if static else DynamicCache()
    logits = lm(ids, mask, past_key_values=cache).logits[:, -1]
    alone = list(rows)
    for _ in range(steps):
        token = logits.argmax(-1, keepdim=True)
        alone = [torch.cat((row, token[i : i + 1]), dim=1) for i, row in enumerate(alone)]
        mask = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), dim=1)
        logits = lm(token, mask, past_key_values=cache).logits[:, -1]
        for i, row in enumerate(alone):
            close(logits[i], lm(row).logits[0, -1])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("static", [False, True])
def test_cached_equals_uncached_in_chunks(static: bool, implementation: str) -> None:
    lm = model(use_sliding_window=True, sliding_window=4)
    lm.set_attn_implementation(implementation)
    ids = torch.cat(ids_of(12, 12, seed=3))
    whole = lm(ids, use_cache=False).logits
    cache: Any = StaticCache(lm.config, 15, batch_size=2) if static else DynamicCache()
    parts, start = [], 0
    for size in (4, 1, 1, 5, 1):
        parts.append(lm(ids[:, start : start + size], past_key_values=cache).logits)
        start += size
    close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def test_flex_attention_agrees_with_padding_documents_windows_and_caches() -> None:
    flex, sdpa = (
        model(use_sliding_window=True, sliding_window=3, num_hidden_layers=2, no_rope_layers=[1, 0])
        for _ in range(2)
    )
    flex.set_attn_implementation("flex_attention")
    ids, mask = padded(ids_of(6, 3), "left")
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 1, 2]])
    outputs = []
    for lm in (flex, sdpa):
        whole = lm(ids, mask, positions)
        token, longer = ids[:, :1], torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), 1)
        step = lm(token, longer, past_key_values=whole.past_key_values)
        outputs.append((whole.logits, step.logits))
    for left, right in zip(*outputs, strict=True):
        close(left, right)


@torch.no_grad()
def test_a_cropped_cache_continues_from_there() -> None:
    lm = model()
    ids = ids_of(10)[0]
    cache = lm(ids).past_key_values
    cache.crop(6)
    close(lm(ids[:, 6:], past_key_values=cache).logits, lm(ids).logits[:, 6:])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_packed_documents_equal_documents_alone(with_mask: bool, implementation: str) -> None:
    lm = model(use_sliding_window=True, sliding_window=3)
    lm.set_attn_implementation(implementation)
    documents = ids_of(5, 1, 4, seed=2)
    row = torch.cat(documents, dim=1)
    positions = torch.cat([torch.arange(doc.shape[1]) for doc in documents])[None]
    mask = torch.ones_like(row) if with_mask else None
    packed = lm(row, mask, positions).logits
    close(packed, torch.cat([lm(doc).logits for doc in documents], dim=1))
    assert not torch.allclose(packed[:, 5:], lm(row).logits[:, 5:], atol=1e-3)


@torch.no_grad()
def test_a_packed_row_is_continued_by_its_last_document() -> None:
    lm = model()
    first, second = ids_of(4, 3)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    cache = lm(torch.cat((first, second), 1), position_ids=positions).past_key_values
    token = torch.tensor([[9]])
    continued = lm(token, position_ids=torch.tensor([[3]]), past_key_values=cache).logits[:, -1]
    close(continued, lm(torch.cat((second, token), 1)).logits[:, -1])


@torch.no_grad()
def test_positions_may_jump_forward_within_a_document() -> None:
    lm = model(no_rope_layers=[0, 0, 0, 0])
    ids = ids_of(6)[0]
    close(lm(ids, position_ids=torch.tensor([[0, 1, 50, 51, 60, 61]])).logits, lm(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_ready_made_mask_is_used_as_it_is(implementation: str) -> None:
    lm = model()
    lm.set_attn_implementation(implementation)
    rows = ids_of(6, 3)
    ids, mask = padded(rows, "left")
    order = torch.ones(6, 6, dtype=torch.bool).tril()
    ready = order[None, None] & mask.bool()[:, None, None, :]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    close(lm(ids, ready, positions).logits[mask.bool()], lm(ids, mask).logits[mask.bool()])
    with pytest.raises(ParameterError, match="must be bool"):
        lm(ids, ready.float())


@torch.no_grad()
def test_compiles_as_one_graph_and_reuses_it_while_decoding() -> None:
    lm, ids = model(num_hidden_layers=2, no_rope_layers=[1, 0]), ids_of(6)[0]
    compiled = torch.compile(lm, fullgraph=True, backend="eager")
    plain_cache, cache = (StaticCache(lm.config, 16) for _ in range(2))
    close(compiled(ids, past_key_values=cache).logits, lm(ids, past_key_values=plain_cache).logits)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(6):
        step = compiled(ids[:, :1], past_key_values=cache).logits
        close(step, lm(ids[:, :1], past_key_values=plain_cache).logits)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2
