"""The model under the benchmark: loaded, on the runner that was asked for, with what both are made of.

In: BenchOptions. Out: a Subject. DeviceError or ParameterError where the engine asked for cannot run it.
"""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smollm3 import __version__
from smollm3.cli.bench_machine import commit
from smollm3.cli.bench_model import head_scheme, scheme
from smollm3.cli.bench_options import BenchOptions
from smollm3.cli.machine import describe_cpu
from smollm3.engine.runner import Runner
from smollm3.errors import ParameterError
from smollm3.model.native_runner import NativeRunner, refusal
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import TorchRunner
from smollm3.native.library import native_status
from smollm3.quantization.config import BitsAndBytesConfig

FIRST_PROMPT = 32  # ids of the prompt that the time to the first token is measured with


@dataclass(frozen=True)
class Subject:
    """A model ready to run."""

    model: SmolLM3ForCausalLM
    runner: Runner
    threads: int
    load_s: float
    not_native_because: str | None  # None on the native engine

    @property
    def engine(self) -> str:
        """`native` or `torch`."""
        return "torch" if self.not_native_because else "native"


def load_subject(options: BenchOptions, path: Path, contexts: Sequence[int]) -> Subject:
    """Load the model at `path` and keep time."""
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    model = _load(options, path)
    runner, reason = _runner(options, model, contexts, threads)
    return Subject(model, runner, threads, time.perf_counter() - begin, reason)


def _load(options: BenchOptions, path: Path) -> SmolLM3ForCausalLM:
    config: Any = options.quantize
    if options.quantize == "bitsandbytes-nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16",
        )
    return SmolLM3ForCausalLM.from_pretrained(
        path, dtype=options.dtype, device_map="cpu", quantization_config=config
    ).eval()


def _runner(
    options: BenchOptions, model: SmolLM3ForCausalLM, contexts: Sequence[int], threads: int
) -> tuple[Runner, str | None]:
    """Return what runs the model, and why it is not the native engine if it is not."""
    reason = "torch was asked for" if options.engine == "torch" else refusal(model)
    if options.engine == "torch" or (options.engine == "auto" and reason is not None):
        if options.isa is not None or options.kv_bits != 16:
            raise ParameterError(f"--isa and --kv-bits 8 need the native engine, which cannot run: {reason}")
        return TorchRunner(model), reason
    spare = options.num_new + 2 * NativeRunner.BLOCK_SIZE
    # Twice: what is decoded are forks of filled sequences.
    together = 2 * max(options.batches) * (options.batch_context + spare)
    tokens = max(2 * (max(contexts) + spare), together) + FIRST_PROMPT + NativeRunner.BLOCK_SIZE
    runner = NativeRunner(
        model, threads=threads, isa=options.isa, kv_bits=options.kv_bits, max_cache_tokens=tokens
    )
    return runner, None


def settle(subject: Subject) -> float | None:
    """Move mapped weights into huge pages, as an idle server or chat does; return the seconds it took."""
    if not isinstance(subject.runner, NativeRunner):
        return None
    begin = time.perf_counter()
    subject.runner.settle().wait()
    return round(time.perf_counter() - begin, 3)


def describe_subject(subject: Subject, options: BenchOptions) -> dict[str, Any]:
    """Return what runs here: versions, processor, engine and formats."""
    on_torch = subject.engine == "torch"
    cpu, dtype = describe_cpu(), subject.model.model.norm.weight.dtype
    return {
        "model": options.model,
        "commit": commit(),
        "versions": {"smollm3": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "cpu": cpu["name"],
        "cores": cpu["cores"],
        "threads": subject.threads,
        "engine": subject.engine,
        "not_native_because": subject.not_native_because,
        "isa": torch.backends.cpu.get_cpu_capability() if on_torch else options.isa or native_status().isa,
        "scheme": scheme(subject.model),
        "head": head_scheme(subject.model, subject.runner),
        "kv_bits": 8 * dtype.itemsize if on_torch else options.kv_bits,
    }
