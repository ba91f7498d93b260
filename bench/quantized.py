"""Memory and decode speed of a model in bfloat16 and quantised through bitsandbytes.

    python bench/quantized.py [MODEL] [--tokens 64] [--schemes bf16,nf4,nf4-double,fp4,int8] [--device cpu]

Each scheme runs in a process of its own, all of them on the torch runner. Peak memory is what the process (on
CUDA: the device) held above its start while loading, without the pages of the checkpoint's file. Ends in one
line of JSON.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

SCHEMES: dict[str, dict[str, Any] | None] = {
    "bf16": None,
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True},
    "int8": {"load_in_8bit": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    results = {}
    for scheme in options.schemes.split(","):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one", scheme],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        results[scheme] = json.loads(done.stdout.splitlines()[-1])
        print(f"{scheme:>10}: {results[scheme].pop('report')}", file=sys.stderr)
    print(
        json.dumps(
            {"bench": "quantized", "model": options.model, "device": options.device, "results": results}
        )
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load the model in one scheme and decode greedily."""
    import torch

    from smollm3 import BitsAndBytesConfig, SmolLM3ForCausalLM
    from smollm3.quantization.memory import memory_report

    if options.threads:
        torch.set_num_threads(options.threads)
    asked = SCHEMES[options.one]
    config = asked and BitsAndBytesConfig(**asked, bnb_4bit_compute_dtype="bfloat16")
    if config:
        from smollm3.quantization.quantizer import quantizer_for

        quantizer_for(config)  # its import is not part of loading
    peak = Peak(options.device)
    started = time.perf_counter()
    with peak:
        model = SmolLM3ForCausalLM.from_pretrained(
            options.model, dtype="bfloat16", device_map=options.device, quantization_config=config
        )
    load_seconds = time.perf_counter() - started
    model.engine = "torch"
    ids = torch.randint(10, 1000, (1, options.prompt_tokens), device=model.device)
    decode(model, ids, 2)  # kernels settle, codes take their kernel's order
    prefill = min(decode(model, ids, 1) for _ in range(options.repeats))
    whole = min(decode(model, ids, options.tokens + 1) for _ in range(options.repeats))
    report = memory_report(model)
    return {
        "weights_mb": round(report.total / 1e6, 1),
        "bf16_weights_mb": round(report.before / 1e6, 1),
        "peak_load_mb": round(peak.bytes / 1e6, 1),
        "load_s": round(load_seconds, 2),
        "prefill_tok_s": round(options.prompt_tokens / prefill, 1),
        "decode_tok_s": round(options.tokens / (whole - prefill), 1),
        "threads": torch.get_num_threads(),
        "report": str(report),
    }


def decode(model: Any, ids: Any, num_tokens: int) -> float:
    """Return the seconds that generating `num_tokens` takes."""
    started = time.perf_counter()
    model.generate(ids, max_new_tokens=num_tokens, do_sample=False, eos_token_id=None)
    return time.perf_counter() - started


class Peak:
    """The most memory held at once inside a `with` block, above what was held at its start."""

    def __init__(self, device: str) -> None:
        self.on_cuda = device.startswith("cuda")
        self.bytes = 0
        self._done = threading.Event()

    def __enter__(self) -> "Peak":
        self._start = self._held()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._held() - self._start)

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, self._held() - self._start)

    def _held(self) -> int:
        if self.on_cuda:
            import torch

            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("RssAnon:")[1].split()[0])


if __name__ == "__main__":
    main()
