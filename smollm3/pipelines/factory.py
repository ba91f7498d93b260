"""`pipeline(task, model, ...)`: from words to a pipeline that is loaded and checked.

In: a task, a model by name, path or object, and arguments of loading and of the task. Out: the task's
    pipeline.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike
from typing import Any

import torch

from smollm3.checkpoint.hub import DEFAULT_MODEL
from smollm3.errors import ParameterError
from smollm3.model.device import resolve_device
from smollm3.model.heads import (
    SmolLM3ForQuestionAnswering,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
)
from smollm3.model.module import SmolLM3PreTrainedModel
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.pipelines.pipeline import Pipeline
from smollm3.pipelines.question_answering import QuestionAnsweringPipeline
from smollm3.pipelines.text_classification import TextClassificationPipeline
from smollm3.pipelines.text_generation import TextGenerationPipeline
from smollm3.pipelines.token_classification import TokenClassificationPipeline
from smollm3.tokenization import SmolLM3Tokenizer

TASKS: dict[str, tuple[type[Pipeline[Any]], type[SmolLM3PreTrainedModel]]] = {
    "text-generation": (TextGenerationPipeline, SmolLM3ForCausalLM),
    "text-classification": (TextClassificationPipeline, SmolLM3ForSequenceClassification),
    "token-classification": (TokenClassificationPipeline, SmolLM3ForTokenClassification),
    "question-answering": (QuestionAnsweringPipeline, SmolLM3ForQuestionAnswering),
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}

_WHERE = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
_HOW = ("config", "attn_implementation", "quantization_config", "trust_remote_code")
_SPELLINGS = {"torch_dtype": "dtype", "device": "device_map"}


def pipeline(
    task: str | None = None,
    model: str | PathLike[str] | SmolLM3PreTrainedModel | None = None,
    tokenizer: str | PathLike[str] | SmolLM3Tokenizer | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    **kwargs: Any,
) -> Any:
    """Return the pipeline of a task.

    Args:
        task: text-generation, text-classification (sentiment-analysis), token-classification (ner) or
            question-answering; None takes the task that a model object is made for.
        model: a hub name, short name, folder, GGUF file or loaded model; by default SmolLM3-3B.
        tokenizer: by default the model's own; needed beside a loaded model.
        dtype, torch_dtype: two spellings: a torch dtype, its name, or "auto" (default: as stored).
        device, device_map: where to compute; two spellings of one thing. An index is a CUDA device, and it is
            an error where there is none; "auto" (default) takes the first accelerator, else the CPU.
        model_kwargs: more arguments for loading, such as quantization_config.
        batch_size: inputs that go through the model together.
        **kwargs: revision, token, cache_dir, local_files_only, subfolder, config, attn_implementation,
            quantization_config; anything else becomes a default of the pipeline's calls.

    Raises:
        ParameterError: an unknown task or argument. ModelNotFoundError, ConfigError, CheckpointError,
            DeviceError.
    """
    pipeline_class, model_class = TASKS[_task_name(task, model)]
    loading = _merged(
        {"dtype": dtype, "torch_dtype": torch_dtype, "device": device, "device_map": device_map},
        {key: kwargs.pop(key) for key in (*_WHERE, *_HOW) if key in kwargs},
        model_kwargs or {},
    )
    if isinstance(model, SmolLM3PreTrainedModel):
        loaded = _check_loaded(model, model_class, loading)
        if tokenizer is None:
            raise ParameterError("a loaded model comes without its tokenizer: pass tokenizer= as well")
    else:
        model = DEFAULT_MODEL if model is None else model
        loaded = model_class.from_pretrained(model, **{"dtype": "auto", "device_map": "auto", **loading})
    if not isinstance(tokenizer, SmolLM3Tokenizer):
        where = {key: value for key, value in loading.items() if key in _WHERE}
        tokenizer = SmolLM3Tokenizer.from_pretrained(str(model if tokenizer is None else tokenizer), **where)
    return pipeline_class(loaded, tokenizer, batch_size=batch_size, **kwargs)


def _merged(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Put the arguments of loading together under one spelling; None is not given."""
    merged: dict[str, Any] = {}
    for source in sources:
        for key, value in source.items():
            name = _SPELLINGS.get(key, key)
            if value is None:
                continue
            if name in merged and merged[name] != value:
                raise ParameterError(
                    f"{name} is given twice, as {merged[name]!r} and {key}={value!r}: give one"
                )
            merged[name] = value
    return merged


def _task_name(task: str | None, model: object) -> str:
    """Return the task's own name; raises ParameterError that names the closest one."""
    known = [*TASKS, *ALIASES]
    if task is None:
        for name, (_, model_class) in TASKS.items():
            if isinstance(model, model_class):
                return name
        raise ParameterError(f"the task is missing: give task= one of {', '.join(known)}")
    if task not in known:
        close = get_close_matches(str(task), known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(known)}"
        raise ParameterError(f"task {task!r} is unknown: {hint}")
    return ALIASES.get(task, task)


def _check_loaded(
    model: SmolLM3PreTrainedModel, model_class: type[SmolLM3PreTrainedModel], loading: dict[str, Any]
) -> SmolLM3PreTrainedModel:
    """Return a model that was loaded before, on the device asked for; the rest cannot be changed now."""
    if not isinstance(model, model_class):
        raise ParameterError(f"the task needs a {model_class.__name__}, not a {type(model).__name__}")
    late = [key for key in loading if key not in ("device_map", *_WHERE)]
    if late:
        raise ParameterError(f"{late[0]} is for loading and this model is loaded: pass it to from_pretrained")
    if "device_map" in loading:
        model.to(resolve_device(loading["device_map"]))
    return model
