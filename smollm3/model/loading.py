"""Fills a model that was built on the meta device with the tensors of a checkpoint, one at a time.

In: a model class, an open checkpoint, and how to load. Out: a model on its device. At any moment there is one
copy of the weights and one tensor on its way; a tensor whose dtype and device already fit stays in the file's
pages. Knows no format.
"""

import logging
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from smollm3.checkpoint.progress import progress
from smollm3.checkpoint.source import Checkpoint
from smollm3.errors import CheckpointError, ConfigError, ParameterError
from smollm3.model.config import SmolLM3Config
from smollm3.ops.attention import check_implementation
from smollm3.quantization.quantizer import Quantizer

logger = logging.getLogger("smollm3")
Model = TypeVar("Model", bound=Any)
BASE_PREFIXES = ("model", "transformer")  # the second is the question-answering head's
BASE_PARTS = ("embed_tokens.", "layers.", "norm.")
# Parts that a checkpoint of another head does not have; they start fresh.
NEW_HEADS = ("score.", "qa_outputs.")
OTHER_HEADS = (*NEW_HEADS, "lm_head.")
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class LoadPlan:
    """Where the weights go and in which form."""

    device: torch.device
    dtype: torch.dtype
    attn_implementation: str | None
    quantizer: Quantizer | None


def choose_dtype(dtype: Any, torch_dtype: Any, config: SmolLM3Config, checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype asked for under either name; None and "auto" take the checkpoint's own."""
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ParameterError(
            f"dtype={dtype} and torch_dtype={torch_dtype} are one argument: give one of them"
        )
    asked = torch_dtype if dtype is None else dtype
    if asked is None or asked == "auto":
        asked = config.dtype or checkpoint.stored_dtype
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise ParameterError(f"dtype={asked!r}: give 'auto' or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def load_model(
    model_class: type[Model], config: SmolLM3Config, checkpoint: Checkpoint, plan: LoadPlan
) -> Model:
    """Build `model_class` without memory and fill it.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or belongs to nothing in the model.
    """
    if plan.attn_implementation is not None:
        check_implementation(plan.attn_implementation, plan.device)
        config.attn_implementation = plan.attn_implementation
    with torch.device("meta"):
        model = model_class(config)
    model.to(plan.dtype)
    if plan.quantizer is not None:
        plan.quantizer.prepare_(model)
    places = _places(model, checkpoint, plan.quantizer)
    for source, target in progress(places.items(), len(places), "Loading weights"):
        tensor = checkpoint.load(source)
        if plan.quantizer is not None and plan.quantizer.load_(
            model, target, tensor, plan.device, plan.dtype
        ):
            continue
        _put_(model, target, tensor, checkpoint.file_of(source), plan)
    model.reset_buffers_(plan.device)
    _finish_(model, checkpoint, plan)
    model.eval()
    return model


def _places(model: Any, checkpoint: Checkpoint, quantizer: Quantizer | None) -> dict[str, str]:
    """Map the checkpoint's names to the model's, and leave out what has no part in this model."""
    has_base = model.base_model is not model
    prefix = f"{model.base_model_prefix}." if has_base else ""
    own = set(model.state_dict().keys()) | {name for name, _ in model.named_parameters()}
    tied = set(model._tied_weights_keys) if model.config.tie_word_embeddings else set()
    places: dict[str, str] = {}
    unused: list[str] = []
    for name in checkpoint.names():
        target = prefix + base if (base := _base_name(name)) is not None else name
        if target in tied or target.endswith("rotary_emb.inv_freq"):
            continue
        if target.startswith(OTHER_HEADS) and target not in own:
            unused.append(name)
        elif target in own or quantizer is not None:
            places[name] = target
        else:
            raise CheckpointError(
                f"{checkpoint.file_of(name)} holds {name!r}, for which the model of its config has no place"
            )
    if unused and not set(unused) <= {"lm_head.weight"}:
        logger.warning("%s: not used by %s: %s", checkpoint.path, type(model).__name__, ", ".join(unused))
    return places


def _base_name(name: str) -> str | None:
    """The name inside the base model, without its prefix; None for a head's tensor."""
    first, _, rest = name.partition(".")
    if first in BASE_PREFIXES and rest.startswith(BASE_PARTS):
        return rest
    return name if name.startswith(BASE_PARTS) else None


def _put_(model: nn.Module, name: str, tensor: Tensor, file: str, plan: LoadPlan) -> None:
    owner, attribute = _owner(model, name)
    old = getattr(owner, attribute, None)
    if not isinstance(old, Tensor):
        raise CheckpointError(f"{file} holds {name!r}, for which the model of its config has no place")
    if old.shape != tensor.shape:
        raise CheckpointError(
            f"{file}: {name!r} has the shape {tuple(tensor.shape)}, its config asks for {tuple(old.shape)}"
        )
    placed = tensor.to(plan.device, plan.dtype if tensor.is_floating_point() else tensor.dtype)
    if isinstance(old, nn.Parameter):
        setattr(owner, attribute, nn.Parameter(placed, requires_grad=old.requires_grad))
    else:
        setattr(owner, attribute, placed)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _finish_(model: Any, checkpoint: Checkpoint, plan: LoadPlan) -> None:
    """Tie, draw the parts of a new head, and make sure that nothing stayed without weights."""
    if plan.quantizer is not None:
        plan.quantizer.finish_(model)
    model.tie_weights()
    empty = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    fresh = [name for name in empty if name.startswith(NEW_HEADS)]
    if missing := [name for name in empty if name not in fresh]:
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(missing)} of the model's tensors, the first {missing[0]!r}: it is "
            "not complete or its config is of another model"
        )
    for name in fresh:
        owner, attribute = _owner(model, name)
        old = getattr(owner, attribute)
        placed = torch.empty(old.shape, dtype=plan.dtype, device=plan.device)
        setattr(owner, attribute, nn.Parameter(placed))
    if fresh:
        model._draw_({_owner(model, name)[0] for name in fresh})
        logger.warning("%s: newly initialised, train before use: %s", type(model).__name__, ", ".join(fresh))
    left = [name for name, buffer in model.named_buffers() if buffer.device.type == "meta"]
    if left:
        raise ConfigError(f"{checkpoint.path}: the buffer {left[0]!r} has no value")
