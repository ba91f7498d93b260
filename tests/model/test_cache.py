"""Caches: what goes in comes out, memory is reused, misuse is named."""

import pytest
import torch
from torch import Tensor

from smollm3.errors import ContextOverflowError, ParameterError
from smollm3.model.cache import BLOCK, DynamicCache, StaticCache
from smollm3.model.config import SmolLM3Config

CONFIG = SmolLM3Config(
    vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)


def pair(T: int, B: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(B, 2, T, 4), torch.randn(B, 2, T, 4)


def static(room: int = 12) -> StaticCache:
    return StaticCache(CONFIG, room, batch_size=2)


@pytest.mark.parametrize("make", [DynamicCache, static])
def test_updates_come_back_in_order(make: type[DynamicCache]) -> None:
    cache = make()
    assert cache.get_seq_length() == 0
    keys, values = [], []
    for T in (3, 1, 1, 4):
        for layer_idx in range(2):
            k, v = pair(T)
            all_k, all_v = cache.update(k, v, layer_idx)
            if layer_idx == 0:
                keys.append(k)
                values.append(v)
                length = cache.get_seq_length()
                assert torch.equal(all_k[:, :, :length], torch.cat(keys, 2))
                assert torch.equal(all_v[:, :, :length], torch.cat(values, 2))
    assert cache.get_seq_length(0) == cache.get_seq_length(1) == 9
    assert len(cache) == 2


def test_dynamic_cache_does_not_copy_per_token() -> None:
    cache = DynamicCache()
    cache.update(*pair(5), 0)
    addresses = set()
    for _ in range(4 * BLOCK):
        keys, _ = cache.update(*pair(1), 0)
        addresses.add(keys.data_ptr())
    assert len(addresses) <= 4  # 256, 512, 1024, 2048
    assert keys.shape[2] == 5 + 4 * BLOCK


def test_dynamic_cache_keeps_gradients() -> None:
    cache = DynamicCache()
    first, second = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(2))
    cache.update(first, first, 0)
    keys, values = cache.update(second, second, 0)
    (keys * values).sum().backward()
    assert first.grad is not None
    torch.testing.assert_close(first.grad, 2 * first.detach())


def test_dynamic_cache_outlives_inference_mode() -> None:
    cache = DynamicCache()
    with torch.inference_mode():
        k, v = pair(3)
        cache.update(k, v, 0)
    with torch.no_grad():
        keys, _ = cache.update(*pair(1), 0)
    assert torch.equal(keys[:, :, :3], k)


@pytest.mark.parametrize("make", [DynamicCache, static])
def test_crop_and_reorder(make: type[DynamicCache]) -> None:
    cache = make()
    k, v = pair(6)
    cache.update(k, v, 0)
    cache.crop(4)
    assert cache.get_seq_length() == 4
    cache.crop(-1)
    assert cache.get_seq_length() == 3
    cache.crop(100)
    assert cache.get_seq_length() == 3
    cache.reorder(torch.tensor([1, 0]))
    new_k, new_v = pair(1)
    keys, _ = cache.update(new_k, new_v, 0)
    assert torch.equal(keys[:, :, :4], torch.cat((k[[1, 0], :, :3], new_k), 2))


def test_dynamic_cache_repeats_rows() -> None:
    cache = DynamicCache()
    k, v = pair(2)
    cache.update(k, v, 0)
    cache.reorder(torch.tensor([0, 0, 1]))
    keys, _ = cache.update(*pair(1, B=3), 0)
    assert torch.equal(keys[:, :, :2], k[[0, 0, 1]])


def test_static_cache_keeps_its_shape_and_place() -> None:
    cache = static()
    keys, _ = cache.update(*pair(5), 0)
    assert keys.shape == (2, 2, 12, 4)
    again, _ = cache.update(*pair(1), 0)
    assert again.data_ptr() == keys.data_ptr()
    assert again.shape == keys.shape
    cache.reset()
    assert cache.get_seq_length() == 0


def test_misuse_is_named() -> None:
    cache = static()
    with pytest.raises(ContextOverflowError, match="room for 12 tokens and 13 are asked for"):
        cache.update(*pair(13), 0)
    with pytest.raises(ParameterError, match="holds 2 rows and the input has 3"):
        cache.update(*pair(1, B=3), 0)
    with pytest.raises(ParameterError, match="cannot become 3 rows"):
        cache.reorder(torch.tensor([0, 0, 1]))
    with pytest.raises(ParameterError, match="use DynamicCache"):
        cache.update(torch.randn(2, 2, 1, 4, requires_grad=True), torch.randn(2, 2, 1, 4), 0)
    with pytest.raises(ParameterError, match="max_cache_len=0"):
        static(0)
    dynamic = DynamicCache()
    dynamic.update(*pair(1), 0)
    with pytest.raises(ParameterError, match="holds 2 rows and the input has 1"):
        dynamic.update(*pair(1, B=1), 0)
