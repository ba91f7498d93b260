"""Normalisation and losses against their formulas."""

import pytest
import torch
from torch.nn import functional as F

from smollm3.errors import ParameterError
from smollm3.ops.loss import (
    causal_lm_loss,
    infer_problem_type,
    question_answering_loss,
    sequence_classification_loss,
    token_classification_loss,
)
from smollm3.ops.norm import rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_casts_before_it_scales(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 16, dtype=dtype), torch.randn(16, dtype=dtype)
    out = rms_norm(x, weight, 1e-6)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    assert out.dtype == dtype
    torch.testing.assert_close(out, weight * exact.to(dtype), atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


def test_rms_norm_survives_what_would_overflow_in_float16() -> None:
    x = torch.full((1, 4), 60000.0, dtype=torch.float16)
    torch.testing.assert_close(rms_norm(x, torch.ones(4, dtype=torch.float16), 1e-6), torch.ones_like(x))


def test_causal_loss_compares_each_token_with_the_logits_before_it() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 7), torch.tensor([[1, 2, 3, 4], [5, -100, 6, -100]])
    pairs = [(0, 0, 2), (0, 1, 3), (0, 2, 4), (1, 1, 6)]
    losses = torch.stack([-logits[b, t].log_softmax(-1)[label] for b, t, label in pairs])
    torch.testing.assert_close(causal_lm_loss(logits, labels), losses.mean())
    torch.testing.assert_close(causal_lm_loss(logits, labels, num_items_in_batch=10), losses.sum() / 10)
    shifted = torch.tensor([[2, 3, 4, -100], [-100, 6, -100, -100]])
    torch.testing.assert_close(causal_lm_loss(logits, None, shift_labels=shifted), losses.mean())
    assert causal_lm_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_accumulated_batches_sum_to_the_loss_of_the_whole() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 9), torch.randint(0, 9, (4, 6))
    labels[0, 3:] = -100
    whole = causal_lm_loss(logits, labels)
    count = (labels[:, 1:] != -100).sum()
    parts = [causal_lm_loss(logits[i : i + 1], labels[i : i + 1], num_items_in_batch=count) for i in range(4)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_causal_loss_names_what_does_not_fit() -> None:
    with pytest.raises(ParameterError, match="leave logits_to_keep at 0"):
        causal_lm_loss(torch.randn(1, 1, 5), torch.tensor([[1, 2, 3]]))
    with pytest.raises(ParameterError, match="needs labels"):
        causal_lm_loss(torch.randn(1, 1, 5), None)


def test_problem_types() -> None:
    assert infer_problem_type(1, torch.tensor([1])) == "regression"
    assert infer_problem_type(3, torch.tensor([1])) == "single_label_classification"
    assert infer_problem_type(3, torch.tensor([1.0])) == "multi_label_classification"


def test_sequence_losses() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4)
    classes, numbers, flags = torch.tensor([0, 3, 1]), torch.randn(3, 4), torch.randint(0, 2, (3, 4)).float()
    single = sequence_classification_loss(logits, classes, "single_label_classification")
    torch.testing.assert_close(single, -logits.log_softmax(-1)[range(3), classes].mean())
    torch.testing.assert_close(
        sequence_classification_loss(logits, numbers, "regression"), (logits - numbers).pow(2).mean()
    )
    for target in (numbers[:, 0], numbers[:, :1]):
        loss = sequence_classification_loss(logits[:, :1], target, "regression")
        torch.testing.assert_close(loss, (logits[:, 0] - numbers[:, 0]).pow(2).mean())
    several = sequence_classification_loss(logits, flags, "multi_label_classification")
    by_hand = -(flags * F.logsigmoid(logits) + (1 - flags) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(several, by_hand)


def test_token_loss_ignores_minus_100() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4)
    loss = token_classification_loss(logits, torch.tensor([[2, -100, 1]]))
    expected = -(logits[0, 0].log_softmax(-1)[2] + logits[0, 2].log_softmax(-1)[1]) / 2
    torch.testing.assert_close(loss, expected)


def test_answers_outside_the_row_do_not_count() -> None:
    torch.manual_seed(0)
    start, end = torch.randn(2, 5), torch.randn(2, 5)
    loss = question_answering_loss(start, end, torch.tensor([1, 99]), torch.tensor([[4], [0]]))
    start_loss = -start[0].log_softmax(-1)[1]
    end_loss = -(end[0].log_softmax(-1)[4] + end[1].log_softmax(-1)[0]) / 2
    torch.testing.assert_close(loss, (start_loss + end_loss) / 2)
