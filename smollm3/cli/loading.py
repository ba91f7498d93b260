"""From the options to a loaded model: everything that cannot work is said before any weight is read.

In: LoadOptions. Out: Loaded (model, tokenizer, name). Raises DeviceError, MissingDependencyError or
ParameterError in one line that says what is missing and what to pass instead; nothing is replaced silently.
"""

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3.cli.model_facts import gigabytes
from smollm3.cli.options import LoadOptions
from smollm3.errors import DeviceError, MissingDependencyError, ParameterError

if TYPE_CHECKING:
    from smollm3.model.smollm3 import SmolLM3ForCausalLM
    from smollm3.tokenization import SmolLM3Tokenizer

DTYPES = ("auto", "float32", "bfloat16", "float16")
_DTYPE_NAMES = {
    "fp32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
}
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")
QUANTIZE = ("nf4", "fp4", "int8")


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer, and the name it was asked for by."""

    model: "SmolLM3ForCausalLM"
    tokenizer: "SmolLM3Tokenizer"
    name: str

    @property
    def context_size(self) -> int:
        """How many tokens prompt and answer may have together."""
        return int(self.model.config.max_position_embeddings)


@dataclass(frozen=True)
class Plan:
    """How the model will be loaded: checked, and possible on this machine."""

    device: str
    dtype: str
    attn_implementation: str
    quantize: str | None


def plan_loading(options: LoadOptions) -> Plan:
    """Check the options against each other and against this machine. Imports torch, reads no weights."""
    dtype = _DTYPE_NAMES.get(options.dtype, options.dtype.removeprefix("torch."))
    attention = (options.attn_implementation or "sdpa").replace("-", "_")
    for name, value, choices in (
        ("--dtype", dtype, DTYPES),
        ("--attn-implementation", attention, ATTENTION),
        ("--quantize", options.quantize or QUANTIZE[0], QUANTIZE),
    ):
        if value not in choices:
            raise ParameterError(f"{name} {value!r}: choose from {', '.join(choices)}")
    kind, number = _parse_device(options.device)
    missing, instead = _what_is_missing(kind, number, attention)
    if options.quantize and importlib.util.find_spec("bitsandbytes") is None:
        missing.append(f"--quantize {options.quantize} needs bitsandbytes, which is not installed")
        instead.append("pip install 'smollm3[bitsandbytes]', or leave --quantize out")
    if missing:
        kind_of_error = DeviceError if "CUDA" in missing[0] or "mps" in missing[0] else MissingDependencyError
        raise kind_of_error(f"{'; '.join(missing)}: {' '.join(_joined(instead))}")
    device = kind if number is None else f"{kind}:{number}"
    if device == "auto":
        device = _best_device()
    return Plan(device, dtype, attention, options.quantize)


def _joined(instead: list[str]) -> list[str]:
    flags = [part for part in instead if part.startswith("--")]
    rest = [part for part in instead if not part.startswith("--")]
    return ["; ".join(([f"pass {' '.join(flags)}"] if flags else []) + rest)]


def _parse_device(text: str) -> tuple[str, int | None]:
    """Read `auto`, `cpu`, `mps`, `cuda`, `cuda:1` or `1` as (kind, number)."""
    kind, _, number = ("cuda", "", text) if text.isdecimal() else text.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and (kind != "cuda" or not number.isdecimal())):
        raise ParameterError(f"--device {text!r}: choose auto, cpu, cuda, mps or the number of a CUDA device")
    return kind, int(number) if number else None


def _what_is_missing(kind: str, number: int | None, attention: str) -> tuple[list[str], list[str]]:
    """Return what this machine lacks for the request, and the options that do without."""
    import torch

    missing: list[str] = []
    instead: list[str] = []
    has_cuda = torch.cuda.is_available()
    asked = f"--device {kind if number is None else number}"
    if kind == "cuda" and not has_cuda:
        missing.append(f"{asked} needs a CUDA device, and torch {torch.__version__} finds none here")
        instead.append("--device cpu")
    elif kind == "cuda" and number is not None and number >= torch.cuda.device_count():
        missing.append(f"{asked} needs CUDA device {number}, and there are {torch.cuda.device_count()}")
        instead.append("--device 0")
    elif kind == "mps" and not torch.backends.mps.is_available():
        missing.append("--device mps needs an Apple GPU, and torch finds none here")
        instead.append("--device cpu")
    if attention == "flash_attention_2":
        if (kind in ("cpu", "mps") or not has_cuda) and not missing:
            missing.append("flash_attention_2 needs a CUDA device")
        if importlib.util.find_spec("flash_attn") is None:
            missing.append("flash_attention_2 needs the flash-attn package, which is not installed")
        if missing and any("flash_attention_2" in part for part in missing):
            instead.append("--attn-implementation sdpa")
    return missing, instead


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load(options: LoadOptions) -> Loaded:
    """Load the model and its tokenizer as the options say."""
    plan = plan_loading(options)
    from smollm3.checkpoint.hub import DEFAULT_MODEL
    from smollm3.model.smollm3 import SmolLM3ForCausalLM
    from smollm3.tokenization import SmolLM3Tokenizer

    name = options.model or DEFAULT_MODEL
    where: dict[str, Any] = {"revision": options.revision, "local_files_only": options.local_files_only}
    where = {key: value for key, value in where.items() if value}
    tokenizer = SmolLM3Tokenizer.from_pretrained(name, **where)
    model = SmolLM3ForCausalLM.from_pretrained(
        name,
        dtype=plan.dtype,
        device_map=plan.device,
        attn_implementation=plan.attn_implementation,
        quantization_config=_quantization(plan),
        **where,
    )
    if options.prompt_caches:
        from smollm3.model.prompt_cache import open_prompt_cache

        model.prompt_caches = [open_prompt_cache(path, model) for path in options.prompt_caches]
    return Loaded(model, tokenizer, name)


def _quantization(plan: Plan) -> Any:
    if plan.quantize is None:
        return None
    from smollm3.quantization.config import BitsAndBytesConfig

    if plan.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = "bfloat16" if plan.dtype == "auto" else plan.dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=plan.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def describe(loaded: Loaded) -> str:
    """Return one line about what was loaded."""
    model = loaded.model
    millions = model.num_parameters() / 1e6
    size = f"{millions / 1e3:.2f} billion" if millions >= 1e3 else f"{millions:.0f} million"
    kind = str(model.dtype).removeprefix("torch.")
    context = f"context of {loaded.context_size:,} tokens"
    weights = f"{size} parameters in {gigabytes(model.get_memory_footprint())}"
    return f"{loaded.name}: {weights}, {kind} on {model.device}, {context}"
