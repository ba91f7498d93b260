"""Perplexity of a model on a text, whatever its weights are stored in.

    python bench/perplexity.py MODEL --text FILE [--scheme int4 --group-size 32] [--window 512] [--windows N]

MODEL is a folder, packed or not, a GGUF file or a name. The text is encoded in one piece, without special
tokens, and cut into windows of so many ids; in each window every id but the first is predicted. Packed layers
multiply through the native engine's kernels (integer activations included), the rest runs in torch, in
--dtype.
Ends in one line of JSON.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

SCHEMES = ("as stored", "gguf", "int4", "int6", "int8", "nf4")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--scheme", choices=SCHEMES, default=SCHEMES[0])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--with-minimum", action="store_true")
    parser.add_argument("--head", default="int8", help="scheme of embedding and head, or none")
    parser.add_argument("--dtype", default="float32", help="of what is not packed, or auto")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=None, help="only so many, spread over the text")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    started = time.perf_counter()
    print(json.dumps({**measure(options), "seconds": round(time.perf_counter() - started, 1)}))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load the model and run it over the windows."""
    import torch

    from smollm3 import AutoModelForCausalLM, AutoTokenizer, PackedConfig
    from smollm3.quantization.memory import memory_report

    if options.threads:
        torch.set_num_threads(options.threads)
    config: PackedConfig | str | None = {"gguf": "gguf"}.get(options.scheme)  # the file's blocks as they are
    if options.scheme in SCHEMES[2:]:
        head = None if options.head == "none" else options.head
        config = PackedConfig(options.scheme, options.group_size, not options.with_minimum, head)
    dtype = None if options.scheme == "gguf" else options.dtype  # blocks bring their own
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, quantization_config=config)
    text = options.text.read_bytes()
    ids = AutoTokenizer.from_pretrained(options.model).encode(text.decode(), add_special_tokens=False)
    windows = torch.tensor(ids[: len(ids) // options.window * options.window]).view(-1, options.window)
    losses = []
    count = min(options.windows or len(windows), len(windows))
    chosen = [windows[i * len(windows) // count] for i in range(count)]
    for number, window in enumerate(chosen, start=1):
        losses.append(loss_of(model, window[None]))
        print(f"\r{number} windows: {perplexity(losses):.4f}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    weights = memory_report(model)
    return {
        "bench": "perplexity",
        "model": str(options.model),
        "scheme": str(config.to_dict()) if isinstance(config, PackedConfig) else options.scheme,
        "dtype": str(model.dtype).removeprefix("torch."),
        "text": options.text.name,
        "sha256": hashlib.sha256(text).hexdigest(),
        "window": options.window,
        "windows": len(losses),
        "weights_mb": round(weights.total / 1e6, 1),
        "perplexity": round(perplexity(losses), 4),
    }


def loss_of(model: Any, ids: Any) -> float:
    """Return the mean negative log-likelihood, in nats, of all ids [1, T] but the first."""
    import torch

    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].float()
        return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


def perplexity(losses: list[float]) -> float:
    """Windows are of one size, so the mean over them is the mean over ids."""
    return math.exp(sum(losses) / len(losses))


if __name__ == "__main__":
    main()
