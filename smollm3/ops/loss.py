"""The losses of the model and its heads.

In: logits and labels. Out: a scalar float32 loss. Knows no model and no config class; label -100 is ignored.
Shapes: B batch, T tokens, V vocabulary, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from smollm3.errors import ParameterError

IGNORE_INDEX = -100


def cross_entropy(
    logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Mean over the labels that count, or their sum divided by `num_items` (those of all batches)."""
    labels = labels.to(logits.device)
    if num_items is None:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index)
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / (num_items.to(total.device) if isinstance(num_items, Tensor) else num_items)


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor | None,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Loss of predicting each next token.

    Args:
        logits: [B, T, V].
        labels: [B, T], the tokens themselves; each is compared with the logits one place before.
        shift_labels: [B, T], already moved by one: compared as they are, `labels` is not read.
    """
    if shift_labels is None:
        if labels is None:
            raise ParameterError("the causal loss needs labels or shift_labels")
        shift_labels = F.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]
    if shift_labels.shape != logits.shape[:-1]:
        raise ParameterError(
            f"labels of shape {list(shift_labels.shape)} do not fit logits of {list(logits.shape[:-1])} "
            "positions: with labels leave logits_to_keep at 0"
        )
    return cross_entropy(logits.float().flatten(0, -2), shift_labels.flatten(), num_items_in_batch)


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """Tell regression, one class of many and several classes apart by the number of labels and their type."""
    if num_labels == 1:
        return "regression"
    return (
        "single_label_classification"
        if labels.dtype in (torch.int64, torch.int32)
        else "multi_label_classification"
    )


def sequence_classification_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """Squared error, cross entropy of labels [B], or yes/no per class of labels [B, C]; logits [B, C]."""
    labels = labels.to(logits.device)
    if problem_type == "regression":
        return (
            F.mse_loss(logits.squeeze(-1), labels.squeeze(-1))
            if logits.shape[-1] == 1
            else F.mse_loss(logits, labels)
        )
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels.flatten())
    return F.binary_cross_entropy_with_logits(logits, labels)


def token_classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits [B, T, C] against labels [B, T]."""
    return cross_entropy(logits.float().flatten(0, -2), labels.flatten())


def question_answering_loss(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean loss of the two ends of an answer: logits [B, T], positions [B] or [B, 1]; beyond T is ignored."""
    T = start_logits.shape[1]

    def one_side(logits: Tensor, positions: Tensor) -> Tensor:
        return cross_entropy(logits, positions.reshape(-1).clamp(0, T), ignore_index=T)

    return (one_side(start_logits, start) + one_side(end_logits, end)) / 2
