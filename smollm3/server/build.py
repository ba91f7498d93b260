"""From a loaded model to a Service: which runner computes, and with how much memory.

In: a model, its tokenizer and ServiceOptions. Out: a Service that is ready to start. Loads nothing itself.
"""

from dataclasses import dataclass

from smollm3.engine.engine import Engine
from smollm3.engine.runner import Runner
from smollm3.errors import ParameterError
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import TorchRunner
from smollm3.server.service import Service
from smollm3.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServiceOptions:
    """How a model is served.

    threads: of the native engine. kv_bits: 16 or 8, of its KV cache; kv_memory: bytes of it at most.
    max_model_len: ids of prompt and answer together, if less than the model's context.
    max_requests: that wait or run at once. engine: "native", "torch", or "auto" (native where it can).
    """

    threads: int | None = None
    kv_bits: int = 16
    kv_memory: int | None = None
    max_model_len: int | None = None
    max_requests: int = 128
    engine: str = "auto"


def build_service(
    model: SmolLM3ForCausalLM,
    tokenizer: Tokenizer,
    model_id: str,
    options: ServiceOptions | None = None,
) -> Service:
    """Return a service over `model` under the name `model_id`."""
    model.eval()
    options = options or ServiceOptions()
    runner = build_runner(model, options)
    context_size = options.max_model_len
    if context_size is not None and not 1 < context_size <= runner.context_size:
        raise ParameterError(f"max_model_len={context_size}: this model has 2 to {runner.context_size}")
    config = model.config
    ids = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return Service(
        Engine(runner),
        tokenizer,
        model_id=model_id,
        defaults=ids.merged(model.generation_config),
        context_size=context_size,
        max_requests=options.max_requests,
    )


def build_runner(model: SmolLM3ForCausalLM, options: ServiceOptions) -> Runner:
    """Return the native runner where it can run the model, torch's otherwise or when it is asked for."""
    from smollm3.model.native_runner import NativeRunner, refusal

    if options.engine not in ("auto", "native", "torch"):
        raise ParameterError(f"engine={options.engine!r}: give auto, native or torch")
    native = options.engine == "native" or (
        options.engine == "auto" and model.attn_implementation == "sdpa" and refusal(model) is None
    )
    if native:
        return NativeRunner(
            model,
            threads=options.threads,
            kv_bits=options.kv_bits,
            max_cache_tokens=_cache_tokens(model, options),
        )
    return TorchRunner(model)


def _cache_tokens(model: SmolLM3ForCausalLM, options: ServiceOptions) -> int | None:
    """Return how many ids' keys and values fit the memory that is allowed."""
    if options.kv_memory is None:
        return None
    config = model.config
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    per_id = (
        2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * options.kv_bits // 8
    )
    return options.kv_memory // per_id
