"""Outputs read like transformers': attributes, keys, indices, unpacking; None is not there."""

import pytest
import torch

from smollm3.model.outputs import CausalLMOutputWithPast, QuestionAnsweringModelOutput


def test_three_ways_to_read() -> None:
    loss, logits = torch.tensor(1.0), torch.zeros(1, 2, 3)
    out = CausalLMOutputWithPast(loss=loss, logits=logits)
    assert out.loss is out["loss"] is out[0] is loss
    assert out.logits is out["logits"] is out[1] is out[-1] is logits
    assert out[:2] == (loss, logits)
    first, second = out
    assert first is loss
    assert second is logits
    assert list(out.keys()) == ["loss", "logits"]
    assert out.values() == out.to_tuple() == (loss, logits)
    assert dict(out.items()) == {"loss": loss, "logits": logits}
    assert len(out) == 2


def test_none_is_left_out() -> None:
    logits = torch.zeros(1)
    out = CausalLMOutputWithPast(logits=logits)
    assert out[0] is logits
    assert "loss" not in out
    assert "logits" in out
    assert out.loss is None
    assert out.get("loss", "nothing") == "nothing"
    assert out.get("logits") is logits
    with pytest.raises(KeyError, match="loss"):
        _ = out["loss"]
    with pytest.raises(KeyError, match="unknown"):
        _ = out["unknown"]
    with pytest.raises(IndexError):
        _ = out[1]


def test_order_is_that_of_transformers() -> None:
    import transformers.modeling_outputs as reference

    for name in ("CausalLMOutputWithPast", "SequenceClassifierOutputWithPast", "TokenClassifierOutput"):
        ours = getattr(__import__("smollm3.model.outputs", fromlist=[name]), name)
        assert list(ours.__dataclass_fields__) == list(getattr(reference, name).__dataclass_fields__)
    theirs = reference.QuestionAnsweringModelOutput
    assert list(QuestionAnsweringModelOutput.__dataclass_fields__) == list(theirs.__dataclass_fields__)
