"""Where the sequence head reads its logits, and what its options do."""

from typing import Any

import pytest
import torch

from smollm3.errors import ParameterError
from smollm3.model.config import SmolLM3Config
from smollm3.model.heads import SmolLM3ForSequenceClassification, SmolLM3ForTokenClassification


def classifier(**fields: Any) -> SmolLM3ForSequenceClassification:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_labels": 3,
        "pad_token_id": 7,
        "initializer_range": 0.2,
    }
    return SmolLM3ForSequenceClassification(SmolLM3Config(**{**settings, **fields})).eval()


IDS = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 40, 40]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def at(model: SmolLM3ForSequenceClassification, ids: torch.Tensor, row: int, place: int) -> torch.Tensor:
    """The logits a row would have if its sequence ended at `place`."""
    hidden = model.model(ids[row : row + 1, : place + 1]).last_hidden_state
    return model.score(hidden)[0, -1]


def assert_pooled_at(logits: torch.Tensor, model: Any, ids: torch.Tensor, places: list[int]) -> None:
    for row, place in enumerate(places):
        torch.testing.assert_close(logits[row], at(model, ids, row, place), atol=1e-5, rtol=1e-5)


def test_pools_at_the_last_token_of_the_mask() -> None:
    model = classifier()
    assert_pooled_at(model(IDS, MASK).logits, model, IDS, [4, 2])
    # A real token that happens to be the pad id is a token all the same.
    ending_in_pad = IDS.clone()
    ending_in_pad[0, 4] = ending_in_pad[1, 2] = 7
    assert_pooled_at(model(ending_in_pad, MASK).logits, model, ending_in_pad, [4, 2])


def test_left_padding_pools_at_the_end() -> None:
    model = classifier()
    flipped, mask = IDS.flip(-1), MASK.flip(-1)
    logits = model(flipped, mask).logits
    assert_pooled_at(logits[1:], model, flipped[1:, 2:], [2])


def test_compatible_pooling_looks_at_the_pad_id_alone() -> None:
    model = classifier(classifier_pooling="pad_token")
    padded = IDS.masked_fill(MASK == 0, 7)
    hidden = model.model(padded, MASK).last_hidden_state
    torch.testing.assert_close(model(padded, MASK).logits[1], model.score(hidden)[1, 2])
    hidden = model.model(IDS, MASK).last_hidden_state
    torch.testing.assert_close(model(IDS, MASK).logits[1], model.score(hidden)[1, 4])


def test_without_mask_and_pad_id_a_batch_cannot_be_pooled() -> None:
    model = classifier(pad_token_id=None)
    with pytest.raises(ParameterError, match="2 rows and no pad_token_id: pass an attention_mask"):
        model(IDS)
    assert_pooled_at(model(IDS, MASK).logits, model, IDS, [4, 2])
    assert_pooled_at(model(IDS[:1]).logits, model, IDS[:1], [4])


def test_embeddings_pool_by_the_mask_or_at_the_end() -> None:
    model = classifier()
    embedded = model.get_input_embeddings()(IDS)
    torch.testing.assert_close(
        model(inputs_embeds=embedded, attention_mask=MASK).logits, model(IDS, MASK).logits
    )
    assert_pooled_at(model(inputs_embeds=embedded).logits, model, IDS, [4, 4])


def test_pooling_with_a_cache_reads_among_the_new_tokens() -> None:
    model = classifier()
    cache = model.model(IDS[:1, :3]).past_key_values
    out = model(IDS[:1, 3:], torch.ones(1, 5, dtype=torch.long), past_key_values=cache)
    torch.testing.assert_close(out.logits, model(IDS[:1]).logits, atol=1e-5, rtol=1e-5)
    assert out.past_key_values is cache


def test_problem_type_is_settled_by_the_first_labels() -> None:
    model = classifier()
    model(IDS, MASK, labels=torch.tensor([0, 2]))
    assert model.config.problem_type == "single_label_classification"
    asked = classifier(problem_type="multi_label_classification")
    with pytest.raises((ValueError, RuntimeError)):
        asked(IDS, MASK, labels=torch.tensor([0, 2]))


def test_token_head_drops_out_in_training_only() -> None:
    config = classifier().config
    torch.manual_seed(0)
    model = SmolLM3ForTokenClassification(config).eval()
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
