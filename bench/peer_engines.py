"""One peer in a process of its own: loads a model, takes prompts in, decodes, prints one line of JSON.

    python bench/peer_engines.py KIND TARGET --prompt 512 --new 32 --threads 2

Started by bench/peers.py with the Python in which the peer is installed: needs nothing of smollm3, and numpy
besides the peer. Random ids; no sampling where a peer can go without.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

NUM_IDS = 40_000  # ids are drawn below this: the smallest vocabulary here has 49152
RANDOM = np.random.default_rng(0)


class Engine(Protocol):
    """What is asked of a peer; rates are ids per second."""

    def run(self, num_prompt: int, num_new: int) -> tuple[float, float]:
        """Take a new prompt into an empty cache and decode after it; return both rates."""

    def together(self, batch: int, context: int, num_new: int) -> float:
        """Decode several sequences, each after `context` ids of its own; return their common rate."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=ENGINES)
    parser.add_argument("target", type=Path)
    for name, default in (("prompt", 512), ("new", 32), ("threads", 2), ("repeat", 1), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch-context", type=int, default=128)
    record = measure(parser.parse_args())
    print(f"\n{json.dumps(record)}", flush=True)
    os._exit(0)  # destructors of some peers wait for threads that never end


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load, warm up, then time each thing `repeat` times; the medians."""
    package = installed(options.kind)
    begin = time.perf_counter()
    engine = ENGINES[options.kind][package](options)
    load_s = time.perf_counter() - begin
    engine.run(8, 2)
    runs = [engine.run(options.prompt, options.new) for _ in range(options.repeat)]
    peak = peak_rss()
    record: dict[str, Any] = {
        "version": f"{package} {version(package)}",
        "load_s": round(load_s, 3),
        "prefill_tokens_per_s": round(statistics.median(prefill for prefill, _ in runs), 3),
        "decode_tokens_per_s": round(statistics.median(decode for _, decode in runs), 3),
        "peak_rss_gb": None if peak is None else round(peak / 1e9, 4),
    }
    if options.batch > 1:
        rates = [
            engine.together(options.batch, options.batch_context, options.new) for _ in range(options.repeat)
        ]
        record["batch_tokens_per_s"] = round(statistics.median(rates), 3)
    return record


def installed(kind: str) -> str:
    """Return the first package that can run `kind`; SystemExit names them where there is none."""
    for name in ENGINES[kind]:
        if importlib.util.find_spec(name) is not None:
            return name
    raise SystemExit(f"{' or '.join(ENGINES[kind])} is not installed for {sys.executable}")


def version(package: str) -> str:
    for name in (package, f"{package}-python", f"{package}-cpu"):
        try:
            return importlib.metadata.version(name.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def peak_rss() -> int | None:
    """Bytes, by program: ru_maxrss would begin with the peak of the process that started this one."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def random_ids(count: int) -> list[int]:
    ids: list[int] = RANDOM.integers(0, NUM_IDS, count).tolist()
    return ids


def seconds(call: Callable[..., object], *steps: Any) -> float:
    """Return what calling `call` takes: once, or once with each of `steps`."""
    begin = time.perf_counter()
    if steps:
        for step in steps:
            call(step)
    else:
        call()
    return time.perf_counter() - begin


class LlamaCpp:
    """llama.cpp through llama-cpp-python's bare C functions."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.api: Any = importlib.import_module("llama_cpp")
        self.threads = options.threads
        self.api.llama_backend_init()
        path = str(options.target).encode()
        self.model = self.api.llama_model_load_from_file(path, self.api.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {options.target}")

    def run(self, num_prompt: int, num_new: int) -> tuple[float, float]:
        context = self.context(1, num_prompt + num_new)
        prompt = [(token_id, at, 0) for at, token_id in enumerate(random_ids(num_prompt))]
        prefill = seconds(lambda: self.step(context, prompt))
        steps = [[(token_id, num_prompt + at, 0)] for at, token_id in enumerate(random_ids(num_new))]
        decode = seconds(lambda step: self.step(context, step), *steps)
        self.api.llama_free(context)
        return num_prompt / prefill, num_new / decode

    def together(self, batch: int, context: int, num_new: int) -> float:
        cache = self.context(batch, context + num_new)
        for sequence in range(batch):
            self.step(cache, [(token_id, at, sequence) for at, token_id in enumerate(random_ids(context))])
        steps = [
            [(token_id, context + at, sequence) for sequence, token_id in enumerate(random_ids(batch))]
            for at in range(num_new)
        ]
        taken = seconds(lambda step: self.step(cache, step), *steps)
        self.api.llama_free(cache)
        return batch * num_new / taken

    def context(self, sequences: int, room: int) -> Any:
        params = self.api.llama_context_default_params()
        room = -(-room // 256) * 256  # llama.cpp's own padding, so that every sequence has its share
        params.n_ctx, params.n_seq_max, params.kv_unified = sequences * room, sequences, False
        params.n_threads = params.n_threads_batch = self.threads
        params.n_batch, params.n_ubatch = 2048, 512
        return self.api.llama_init_from_model(self.model, params)

    def step(self, context: Any, ids: list[tuple[int, int, int]]) -> None:
        """Run (id, position, sequence) triples; logits after the last id of each sequence."""
        last = {sequence: idx for idx, (_, _, sequence) in enumerate(ids)}
        for first in range(0, len(ids), 2048):
            part = ids[first : first + 2048]
            batch = self.api.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for idx, (token_id, at, sequence) in enumerate(part):
                batch.token[idx], batch.pos[idx], batch.n_seq_id[idx] = token_id, at, 1
                batch.seq_id[idx][0] = sequence
                batch.logits[idx] = int(last[sequence] == first + idx)
            code = self.api.llama_decode(context, batch)
            self.api.llama_batch_free(batch)
            if code:
                raise SystemExit(f"llama_decode returned {code}")


class LlamaServer:
    """llama.cpp through xllamacpp's server, by the timings that it reports; it samples (greedily) as well."""

    def __init__(self, options: argparse.Namespace) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(options.target)
        params.n_parallel = options.batch
        room = max(options.prompt, options.batch_context if options.batch > 1 else 0) + options.new
        params.n_ctx = options.batch * (-(-room // 256) * 256 + 256)
        params.n_batch, params.n_ubatch, params.warmup = 2048, 512, False
        params.hostnames, params.port = ["127.0.0.1"], 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        self.server: Any = xllamacpp.Server(params)

    def run(self, num_prompt: int, num_new: int) -> tuple[float, float]:
        timings = self.complete(num_prompt, num_new)["timings"]
        return timings["prompt_per_second"], timings["predicted_per_second"]

    def together(self, batch: int, context: int, num_new: int) -> float:
        """The time of a batch of answers, less that of a batch of one id each: the decoding alone."""

        def batch_of(count: int) -> None:
            with ThreadPoolExecutor(batch) as pool:
                list(pool.map(lambda _: self.complete(context, count), range(batch)))

        first = seconds(lambda: batch_of(1))
        return batch * num_new / (seconds(lambda: batch_of(1 + num_new)) - first)

    def complete(self, num_prompt: int, num_new: int) -> dict[str, Any]:
        body = {
            "prompt": random_ids(num_prompt),
            "n_predict": num_new,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0.0,
        }
        answer = self.server.handle_completions(body)
        if "timings" not in answer:
            raise SystemExit(f"the server answered {answer}")
        return dict(answer)


class Transformers:
    """transformers' own model class in bfloat16, one forward call per step."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        self.torch: Any = torch
        self.api: Any = importlib.import_module("transformers")
        torch.set_num_threads(options.threads)
        where: dict[str, Any] = {"pretrained_model_name_or_path": options.target}
        if options.target.is_file():
            where = {"pretrained_model_name_or_path": options.target.parent, "gguf_file": options.target.name}
        self.model: Any = self.api.AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.bfloat16, **self.quantization()
        ).eval()

    def quantization(self) -> dict[str, Any]:
        return {}

    def run(self, num_prompt: int, num_new: int) -> tuple[float, float]:
        prefill, decode = self.timed(1, num_prompt, num_new)
        return num_prompt / prefill, num_new / decode

    def together(self, batch: int, context: int, num_new: int) -> float:
        return batch * num_new / self.timed(batch, context, num_new)[1]

    def timed(self, batch: int, num_prompt: int, num_new: int) -> tuple[float, float]:
        """Return the seconds of the prompts and of the steps after them."""
        past: Any = None

        def step(count: int) -> None:
            nonlocal past
            ids = self.torch.tensor([random_ids(count) for _ in range(batch)])
            past = self.model(ids, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values

        with self.torch.inference_mode():
            return seconds(step, num_prompt), seconds(step, *[1] * num_new)


class TransformersNf4(Transformers):
    """The same through bitsandbytes: NF4, double quantised, computing in bfloat16."""

    def quantization(self) -> dict[str, Any]:
        config = self.api.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self.torch.bfloat16,
        )
        return {"quantization_config": config}


class OpenVino:
    """A stateful model that optimum-cli exported, in the precision that OpenVINO takes by itself."""

    def __init__(self, options: argparse.Namespace) -> None:
        openvino = importlib.import_module("openvino")
        settings = {"INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(options.target / "openvino_model.xml", "CPU", settings)
        self.request: Any = compiled.create_infer_request()

    def run(self, num_prompt: int, num_new: int) -> tuple[float, float]:
        self.request.reset_state()
        prefill = seconds(lambda: self.step(1, 0, num_prompt))
        decode = seconds(lambda past: self.step(1, past, 1), *range(num_prompt, num_prompt + num_new))
        return num_prompt / prefill, num_new / decode

    def together(self, batch: int, context: int, num_new: int) -> float:
        self.request.reset_state()
        self.step(batch, 0, context)
        taken = seconds(lambda past: self.step(batch, past, 1), *range(context, context + num_new))
        return batch * num_new / taken

    def step(self, batch: int, past: int, count: int) -> None:
        positions = np.arange(past, past + count, dtype=np.int64)
        self.request.infer({
            "input_ids": np.array([random_ids(count) for _ in range(batch)], np.int64),
            "attention_mask": np.ones((batch, past + count), np.int64),
            "position_ids": np.broadcast_to(positions, (batch, count)).copy(),
            "beam_idx": np.arange(batch, dtype=np.int32),
        })  # fmt: skip


class Vllm:
    """vLLM's CPU build in bfloat16; decoding is what several ids take more than one."""

    def __init__(self, options: argparse.Namespace) -> None:
        cores = f"0-{options.threads - 1}"
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": cores}
        os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}
        self.api: Any = importlib.import_module("vllm")
        room = max(options.prompt, options.batch_context) + options.new + 16
        self.model = self.api.LLM(
            str(options.target), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=room,
            max_num_seqs=options.batch, enable_prefix_caching=False,
        )  # fmt: skip

    def run(self, num_prompt: int, num_new: int) -> tuple[float, float]:
        first = self.timed(1, num_prompt, 1)
        return num_prompt / first, num_new / (self.timed(1, num_prompt, 1 + num_new) - first)

    def together(self, batch: int, context: int, num_new: int) -> float:
        first = self.timed(batch, context, 1)
        return batch * num_new / (self.timed(batch, context, 1 + num_new) - first)

    def timed(self, batch: int, num_prompt: int, num_new: int) -> float:
        prompts = [{"prompt_token_ids": random_ids(num_prompt)} for _ in range(batch)]
        sampling = self.api.SamplingParams(max_tokens=num_new, ignore_eos=True, detokenize=False)
        return seconds(lambda: self.model.generate(prompts, sampling, use_tqdm=False))


# By kind, and by the package that runs it: the first that is installed.
ENGINES: dict[str, dict[str, Callable[[argparse.Namespace], Engine]]] = {
    "llama.cpp": {"llama_cpp": LlamaCpp, "xllamacpp": LlamaServer},
    "transformers": {"transformers": Transformers},
    "transformers-nf4": {"transformers": TransformersNf4},
    "openvino": {"openvino": OpenVino},
    "vllm": {"vllm": Vllm},
}


if __name__ == "__main__":
    main()
