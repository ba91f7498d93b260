"""The three other heads against transformers: logits, losses, gradients, pooling."""

import random
from typing import Any

import pytest
import torch
from model_oracle import assert_same_gradients, build_pair, random_batch, random_config


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


PROBLEMS: dict[str, dict[str, Any]] = {
    "regression of one number": {"num_labels": 1},
    "regression of several numbers": {"num_labels": 3, "problem_type": "regression"},
    "one class of several": {"num_labels": 4},
    "several classes at once": {"num_labels": 3},
}


def sequence_labels(problem: str, B: int) -> torch.Tensor:
    if problem == "one class of several":
        return torch.tensor([2, 0, 3])[:B]
    if problem == "several classes at once":
        return (torch.arange(B * 3).reshape(B, 3) % 2).float()
    return (
        torch.linspace(-1, 1, B)
        if problem == "regression of one number"
        else torch.linspace(-1, 1, B * 3).view(B, 3)
    )


@pytest.mark.parametrize("layout", ["plain", "left", "right"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_sequence_classification(problem: str, layout: str) -> None:
    rng = random.Random(f"{problem} {layout}")
    config = random_config(rng, pad_token_id=3, **PROBLEMS[problem])
    mine, reference = build_pair(config, "SequenceClassification")
    batch = random_batch(rng, config, layout)
    labels = sequence_labels(problem, 3)
    ours, theirs = mine(**batch.inputs, labels=labels), reference(**batch.inputs, labels=labels)
    close(ours.logits, theirs.logits)
    close(ours.loss, theirs.loss)
    assert mine.config.problem_type == reference.config.problem_type
    ours.loss.backward()
    theirs.loss.backward()
    assert_same_gradients(mine, reference)


def test_sequence_classification_pools_by_the_mask_where_the_pad_id_is_another() -> None:
    """The released model's tokenizer pads with another id than its config: transformers pools at padding."""
    rng = random.Random(0)
    theta = {"rope_type": "default", "rope_theta": 1e4}
    config = random_config(rng, pad_token_id=3, rope_parameters=theta)
    mine, reference = build_pair(config, "SequenceClassification")
    batch = random_batch(rng, config, "right")
    padded_otherwise = batch.ids.masked_fill(~batch.real, 39)
    ours = mine(padded_otherwise, batch.inputs["attention_mask"]).logits
    for row in range(3):
        alone = mine(batch.ids[row : row + 1, batch.real[row]]).logits
        close(ours[row : row + 1], alone)
    theirs = reference(padded_otherwise, attention_mask=batch.inputs["attention_mask"]).logits
    assert not torch.allclose(ours, theirs, atol=1e-3)
    mine.config.classifier_pooling = "pad_token"
    close(mine(padded_otherwise, batch.inputs["attention_mask"]).logits, theirs)


def test_sequence_classification_without_a_mask_goes_by_the_pad_id_as_transformers_does() -> None:
    rng = random.Random(1)
    config = random_config(rng, pad_token_id=3)
    mine, reference = build_pair(config, "SequenceClassification")
    batch = random_batch(rng, config, "right")
    close(mine(batch.ids).logits, reference(batch.ids).logits)


@pytest.mark.parametrize("layout", ["plain", "left", "right"])
@pytest.mark.parametrize("bias", [True, False])
def test_token_classification(layout: str, bias: bool) -> None:
    rng = random.Random(f"{layout} {bias}")
    config = random_config(rng, num_labels=5, token_classification_bias=bias)
    mine, reference = build_pair(config, "TokenClassification")
    assert mine.dropout.p == reference.dropout.p == 0.1
    batch = random_batch(rng, config, layout)
    labels = (batch.ids % 5).masked_fill(~batch.real, -100)
    ours, theirs = mine(**batch.inputs, labels=labels), reference(**batch.inputs, labels=labels)
    close(ours.logits, theirs.logits)
    close(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    assert_same_gradients(mine, reference)


@pytest.mark.parametrize("layout", ["plain", "left", "right"])
def test_question_answering(layout: str) -> None:
    rng = random.Random(layout)
    config = random_config(rng)
    mine, reference = build_pair(config, "QuestionAnswering")
    assert all(name.startswith(("transformer.", "qa_outputs.")) for name in mine.state_dict())
    batch = random_batch(rng, config, layout)
    spans = {"start_positions": torch.tensor([1, 5, 90]), "end_positions": torch.tensor([[4], [40], [12]])}
    ours, theirs = mine(**batch.inputs, **spans), reference(**batch.inputs, **spans)
    close(ours.start_logits, theirs.start_logits)
    close(ours.end_logits, theirs.end_logits)
    close(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    assert_same_gradients(mine, reference)


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_heads_take_embeddings_and_return_states(kind: str) -> None:
    rng = random.Random(kind)
    config = random_config(rng, pad_token_id=3)
    mine, reference = build_pair(config, kind, ours="eager", theirs="eager")
    batch = random_batch(rng, config, "plain")
    embedded = mine.get_input_embeddings()(batch.ids)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    ours, theirs = mine(inputs_embeds=embedded, **wanted), reference(inputs_embeds=embedded, **wanted)
    name = "start_logits" if kind == "QuestionAnswering" else "logits"
    close(ours[name], theirs[name])
    close(ours.hidden_states[-1], theirs.hidden_states[-1])
    close(ours.attentions[0], theirs.attentions[0])


def test_dropout_of_the_token_head_follows_the_config() -> None:
    for fields, rate in (
        ({"classifier_dropout": 0.3, "hidden_dropout": 0.2}, 0.3),
        ({"hidden_dropout": 0.0}, 0.0),
    ):
        mine, reference = build_pair(random_config(random.Random(0), **fields), "TokenClassification")
        assert mine.dropout.p == reference.dropout.p == rate
