"""Fills a model that was built on the meta device with the tensors of a checkpoint, one at a time.

In: a model class, its config, an open checkpoint, and where to. Out: a model on its device. Names and shapes
are settled before the first tensor is read; after that there is one copy of the weights and one tensor on its
way. A tensor whose dtype and device already fit stays in the file's pages. Knows no format.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smollm3.checkpoint.progress import progress
from smollm3.checkpoint.source import Checkpoint
from smollm3.errors import CheckpointError, DeviceError
from smollm3.model.config import SmolLM3Config
from smollm3.quantization.quantizer import Quantizer

logger = logging.getLogger("smollm3")
Model = TypeVar("Model", bound=Any)
BASE_PREFIXES = ("model", "transformer")  # the second is the question-answering head's
BASE_PARTS = ("embed_tokens.", "layers.", "norm.", "rotary_emb.")
LM_HEAD = "lm_head.weight"
HEADS = ("lm_head.", "score.", "qa_outputs.")


@dataclass(frozen=True)
class LoadPlan:
    """Where the weights go and in which form.

    ignore_mismatched_sizes: a head whose shape is not the file's starts fresh.
    """

    device: torch.device
    dtype: torch.dtype
    quantizer: Quantizer | None = None
    ignore_mismatched_sizes: bool = False


class _ShapesOnly(TorchFunctionMode):
    """While it lasts, modules get parameters on the meta device, without memory and first values.

    `torch.device("meta")` would send everything there, and what is computed there (a draw, a range) imports
    torch.compile: seconds and 70 MB before the first tensor is read.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.empty, torch.ones):
            given["device"] = "meta"
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def load_model(
    model_class: type[Model], config: SmolLM3Config, checkpoint: Checkpoint, plan: LoadPlan
) -> Model:
    """Build `model_class` without memory, fill it, and put it into inference mode.

    A head that the checkpoint was not made for starts fresh, one warning names it; everything else must be
    there.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or belongs to nothing in the model.
        DeviceError: the device has no room for the model.
    """
    with _ShapesOnly():
        model: Model = model_class(config)
    model.to(plan.dtype)
    if plan.quantizer is not None:
        plan.quantizer.prepare_(model)
    places = _places(model, checkpoint, plan.quantizer is not None)
    fresh = _missing(model, checkpoint, places) + _misfits(model, checkpoint, places, plan)
    try:
        for source in progress(list(places), len(places), "Loading weights"):
            if places[source] not in fresh:
                file = checkpoint.file_of(source)
                _put_(model, places[source], checkpoint.load(source, plan.dtype), file, plan)
        for name in fresh:
            _put_(model, name, _drawn(name, model), str(checkpoint.path), plan)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceError(
            f"{plan.device} has no room for {checkpoint.path} in {str(plan.dtype).removeprefix('torch.')}: "
            "choose a smaller dtype, a quantization_config or device_map='cpu'"
        ) from error
    model.reset_buffers_(plan.device)
    if plan.quantizer is not None:
        plan.quantizer.finish_(model)
    model.tie_weights()
    model.eval()
    if fresh:
        logger.warning("%s: newly initialised, train before use: %s", type(model).__name__, ", ".join(fresh))
    return model


def _places(model: Any, checkpoint: Checkpoint, quantized: bool) -> dict[str, str]:
    """Map the checkpoint's names to the model's, and leave out what has no part in this model."""
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    wanted = {name for name, _ in model.named_parameters()}  # a tied head is no parameter of its own
    places: dict[str, str] = {}
    taken: set[str] = set()
    unused: list[str] = []
    for name in checkpoint.names():
        base = _base_name(name)
        target = name if base is None else prefix + base
        if target.endswith("rotary_emb.inv_freq"):
            continue
        if target in wanted or (quantized and _is_beside_weight(target, wanted)):
            if target in taken:
                raise CheckpointError(
                    f"{checkpoint.file_of(name)} holds {name!r} once more under another prefix: keep one"
                )
            places[name] = target
            taken.add(target)
        elif target.startswith(HEADS):
            unused.append(name)
        else:
            raise CheckpointError(_no_place(checkpoint.file_of(name), name))
    if LM_HEAD in unused:
        unused.remove(LM_HEAD)
        _settle_tied_(places, prefix + "embed_tokens.weight", model, checkpoint)
    if unused:
        logger.warning("%s: not used by %s: %s", checkpoint.path, type(model).__name__, ", ".join(unused))
    return places


def _base_name(name: str) -> str | None:
    """The name inside the base model, without its prefix; None for a head's tensor."""
    first, _, rest = name.partition(".")
    if first in BASE_PREFIXES and rest.startswith(BASE_PARTS):
        return rest
    return name if name.startswith(BASE_PARTS) else None


def _is_beside_weight(name: str, wanted: set[str]) -> bool:
    """Whether a name is what a quantised layer stores beside its codes, as `x.weight.absmax` or `x.SCB`."""
    layer = name.partition(".weight.")[0] if ".weight." in name else name.rpartition(".")[0]
    return f"{layer}.weight" in wanted and not name.endswith(".bias")


def _settle_tied_(places: dict[str, str], embedding: str, model: Any, checkpoint: Checkpoint) -> None:
    """Decide about a stored language head that is no parameter of the model.

    Of a tied pair a file may hold either name, or both with the same values. A model without a language head
    has no use for an untied one.
    """
    if not model.config.tie_word_embeddings:
        return
    source = next((name for name, target in places.items() if target == embedding), None)
    if source is None:
        places[LM_HEAD] = embedding
    elif model._tied_weights_keys:
        alike = checkpoint.tensor_info(source) == checkpoint.tensor_info(LM_HEAD)
        pair = [checkpoint.load(name).view(torch.uint8) for name in (source, LM_HEAD) if alike]
        if not (alike and torch.equal(*pair)):
            raise CheckpointError(
                f"{checkpoint.file_of(LM_HEAD)} holds a {LM_HEAD!r} that differs from {source!r}, and its "
                "config ties the two: pass tie_word_embeddings=False to keep both"
            )


def _missing(model: Any, checkpoint: Checkpoint, places: Mapping[str, str]) -> list[str]:
    """Return the parameters that are to start fresh; CheckpointError if more than that is missing."""
    filled = set(places.values())
    empty = [name for name, _ in model.named_parameters() if name not in filled]
    made_for = model.config.architectures or ["SmolLM3ForCausalLM"]
    is_made_for = any(kind.__name__ in made_for for kind in type(model).__mro__)
    missing = [name for name in empty if is_made_for or not name.startswith(HEADS)]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(missing)} of the {len(filled) + len(empty)} tensors of "
            f"{type(model).__name__}, the first {missing[0]!r}: download it again or correct its config.json"
        )
    return empty


def _misfits(model: Any, checkpoint: Checkpoint, places: Mapping[str, str], plan: LoadPlan) -> list[str]:
    """Return the heads that may start fresh for their shape; CheckpointError for any other misfit."""
    wanted = dict(model.named_parameters())
    fresh: list[str] = []
    for source, target in places.items():
        shape, dtype = checkpoint.tensor_info(source)
        may_be_codes = not dtype.is_floating_point or shape[1:] == (1,)
        if plan.quantizer is not None and (may_be_codes or target not in wanted):
            continue  # the quantizer knows what their shape should be
        problem = _misfit(source, shape, dtype, wanted[target])
        if problem is not None and plan.ignore_mismatched_sizes and target.startswith(HEADS):
            fresh.append(target)
        elif problem is not None:
            hint = "; ignore_mismatched_sizes=True starts it anew" if target.startswith(HEADS) else ""
            raise CheckpointError(f"{checkpoint.file_of(source)}: {problem}{hint}")
    return fresh


def _misfit(name: str, shape: tuple[int, ...], dtype: torch.dtype, parameter: Tensor) -> str | None:
    if not dtype.is_floating_point:
        return f"{name!r} holds {dtype}, and floating-point weights belong there"
    if shape != tuple(parameter.shape):
        return f"{name!r} has the shape {shape}, its config asks for {tuple(parameter.shape)}"
    return None


def _put_(model: Any, name: str, tensor: Tensor, file: str, plan: LoadPlan) -> None:
    """Give the model a tensor under its name there, through the quantizer where it wants it."""
    quantizer = plan.quantizer
    if quantizer is not None and quantizer.load_(model, name, tensor, plan.device, plan.dtype):
        return
    path, _, attribute = name.rpartition(".")
    try:
        old = model.get_parameter(name)
    except AttributeError:
        raise CheckpointError(_no_place(file, name)) from None
    if (problem := _misfit(name, tuple(tensor.shape), tensor.dtype, old)) is not None:
        raise CheckpointError(f"{file}: {problem}")
    placed = nn.Parameter(tensor.to(plan.device, plan.dtype), requires_grad=old.requires_grad)
    setattr(model.get_submodule(path), attribute, placed)


def _no_place(file: str, name: str) -> str:
    return (
        f"{file} holds {name!r}, for which the model has no place: its config.json is damaged or of another "
        "model"
    )


def _drawn(name: str, model: Any) -> Tensor:
    """Return first values for a parameter of a head: the same on every device and in every dtype."""
    parameter = model.get_parameter(name)
    values = torch.zeros(parameter.shape, dtype=torch.float32)
    return values if name.endswith(".bias") else values.normal_(0.0, model.config.initializer_range)
