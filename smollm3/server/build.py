"""From a loaded model to a Service: which runner computes, and with how much memory.

In: a model, its tokenizer and ServiceOptions. Out: a Service that is ready to start. Loads nothing itself.
"""

from dataclasses import dataclass

from smollm3.engine.engine import Engine
from smollm3.engine.runner import Runner
from smollm3.errors import ParameterError
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.native_runner import RESERVED_SEQUENCES, NativeRunner, refusal
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import TorchRunner
from smollm3.native.free_memory import available_memory
from smollm3.server.service import Service
from smollm3.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServiceOptions:
    """How a model is served.

    threads: of the native engine. kv_bits: 16 or 8, of its KV cache; kv_memory: bytes of it at most.
    max_model_len: ids of prompt and answer together, if less than the model's context.
    max_requests: that wait or run at once. engine: "native", "torch", or "auto" (native where it can).
    prompt_lookup: for requests that do not say; None is on with the native engine.
    memory_share: of this machine's memory, for this process, where kv_memory does not say.
    """

    threads: int | None = None
    kv_bits: int = 16
    kv_memory: int | None = None
    max_model_len: int | None = None
    max_requests: int = 128
    engine: str = "auto"
    prompt_lookup: bool | None = None
    memory_share: float = 1.0


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
    lookup = options.prompt_lookup
    ids = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return Service(
        Engine(runner),
        tokenizer,
        model_id=model_id,
        hidden_size=config.hidden_size,
        defaults=ids.merged(model.generation_config),
        context_size=context_size,
        max_requests=options.max_requests,
        prompt_lookup=isinstance(runner, NativeRunner) if lookup is None else lookup,
    )


def build_runner(model: SmolLM3ForCausalLM, options: ServiceOptions) -> Runner:
    """Return the native runner where it can run the model, torch's otherwise or when it is asked for."""
    if options.engine not in ("auto", "native", "torch"):
        raise ParameterError(f"engine={options.engine!r}: give auto, native or torch")
    if options.engine == "native" or (
        options.engine == "auto" and model.attn_implementation == "sdpa" and refusal(model) is None
    ):
        runner = NativeRunner(
            model,
            threads=options.threads,
            kv_bits=options.kv_bits,
            max_cache_tokens=_cache_tokens(model, options),
        )
        runner.settle()
        return runner
    for name, value, default in (
        ("threads", options.threads, None),
        ("kv_memory", options.kv_memory, None),
        ("kv_bits", options.kv_bits, 16),
    ):
        if value != default:
            raise ParameterError(f"{name} is the native engine's, and torch runs this model: leave it out")
    return TorchRunner(model)


def cache_bytes_per_id(model: SmolLM3ForCausalLM, kv_bits: int = 16) -> int:
    """Return how many bytes one id's keys and values take in the native engine's cache."""
    config = model.config
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    if kv_bits not in (8, 16):
        raise ParameterError(f"kv_bits={kv_bits}: give 8 or 16")
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * kv_bits // 8


def _cache_tokens(model: SmolLM3ForCausalLM, options: ServiceOptions) -> int:
    """Return how many ids' keys and values fit the memory that is allowed, or half of what is free."""
    memory = options.kv_memory
    most = RESERVED_SEQUENCES * model.config.max_position_embeddings
    free = available_memory()
    if memory is None:
        memory = int(free * options.memory_share) // 2 if free is not None else None
    if memory is None:
        return most
    num = memory // cache_bytes_per_id(model, options.kv_bits)
    if num < NativeRunner.BLOCK_SIZE:
        least = cache_bytes_per_id(model, options.kv_bits) * NativeRunner.BLOCK_SIZE
        raise ParameterError(f"kv_memory={memory}: {NativeRunner.BLOCK_SIZE} tokens take {least} bytes")
    return min(num, most)
