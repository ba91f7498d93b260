"""SmolLM3, whole: `from smollm3 import pipeline, AutoModelForCausalLM, AutoTokenizer`.

Importing the package loads nothing else: each public name brings its module along on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF = {
    "pipeline": "smollm3.pipelines.factory",
    "AutoConfig": "smollm3.auto",
    "AutoTokenizer": "smollm3.auto",
    "AutoModel": "smollm3.auto",
    "AutoModelForCausalLM": "smollm3.auto",
    "AutoModelForSequenceClassification": "smollm3.auto",
    "AutoModelForTokenClassification": "smollm3.auto",
    "AutoModelForQuestionAnswering": "smollm3.auto",
    "BitsAndBytesConfig": "smollm3.quantization.config",
    "PackedConfig": "smollm3.quantization.packed_config",
    "GenerationConfig": "smollm3.model.generation_config",
    "SmolLM3Config": "smollm3.model.config",
    "SmolLM3Model": "smollm3.model.smollm3",
    "SmolLM3ForCausalLM": "smollm3.model.smollm3",
    "SmolLM3ForSequenceClassification": "smollm3.model.heads",
    "SmolLM3ForTokenClassification": "smollm3.model.heads",
    "SmolLM3ForQuestionAnswering": "smollm3.model.heads",
    "SmolLM3Tokenizer": "smollm3.tokenization",
    "DynamicCache": "smollm3.model.cache",
    "StaticCache": "smollm3.model.cache",
    "TextStreamer": "smollm3.streamers",
    "TextIteratorStreamer": "smollm3.streamers",
    "ResponseParser": "smollm3.text.parser",
    "SmolLM3Error": "smollm3.errors",
}

if TYPE_CHECKING:
    from smollm3.auto import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )
    from smollm3.errors import SmolLM3Error
    from smollm3.model.cache import DynamicCache, StaticCache
    from smollm3.model.config import SmolLM3Config
    from smollm3.model.generation_config import GenerationConfig
    from smollm3.model.heads import (
        SmolLM3ForQuestionAnswering,
        SmolLM3ForSequenceClassification,
        SmolLM3ForTokenClassification,
    )
    from smollm3.model.smollm3 import SmolLM3ForCausalLM, SmolLM3Model
    from smollm3.pipelines.factory import pipeline
    from smollm3.quantization.config import BitsAndBytesConfig
    from smollm3.quantization.packed_config import PackedConfig
    from smollm3.streamers import TextIteratorStreamer, TextStreamer
    from smollm3.text.parser import ResponseParser
    from smollm3.tokenization import SmolLM3Tokenizer

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BitsAndBytesConfig",
    "DynamicCache",
    "GenerationConfig",
    "PackedConfig",
    "ResponseParser",
    "SmolLM3Config",
    "SmolLM3Error",
    "SmolLM3ForCausalLM",
    "SmolLM3ForQuestionAnswering",
    "SmolLM3ForSequenceClassification",
    "SmolLM3ForTokenClassification",
    "SmolLM3Model",
    "SmolLM3Tokenizer",
    "StaticCache",
    "TextIteratorStreamer",
    "TextStreamer",
    "pipeline",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'smollm3' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
