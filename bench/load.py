"""How long a checkpoint takes to load, side by side with transformers.

    python bench/load.py FOLDER_OR_GGUF [--dtype auto] [--device cpu] [--rounds 5] [--only smollm3]

Each load runs in a process of its own, the two libraries by turns, after every file has been read once so
that both find it in the page cache. `load` is the seconds of from_pretrained alone; `import` comes before it,
and `first_logits` is the first forward pass, of one token, after it, which is when mapped weights are really
read. Ends in one line of JSON with the medians.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIBRARIES = ("smollm3", "transformers")
MEASURES = ("import", "load", "first_logits")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=LIBRARIES)
    parser.add_argument("--one", choices=LIBRARIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.model, options.dtype, options.device)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Run the rounds and print each, then the medians."""
    libraries = [options.only] if options.only else list(LIBRARIES)
    warm(options.model)
    runs: dict[str, list[dict[str, float]]] = {library: [] for library in libraries}
    for number in range(options.rounds):
        for library in libraries if number % 2 == 0 else reversed(libraries):
            runs[library].append(one_process(library, options))
            figures = "  ".join(f"{name} {value:8.3f}" for name, value in runs[library][-1].items())
            print(f"round {number + 1}  {library:<12}  {figures}", file=sys.stderr)
    medians = {
        library: {name: round(statistics.median(run[name] for run in done), 3) for name in done[0]}
        for library, done in runs.items()
    }
    result: dict[str, Any] = {"model": str(options.model), "dtype": options.dtype, "device": options.device}
    result |= {
        "rounds": options.rounds,
        "cpu": platform.processor() or platform.machine(),
        "seconds": medians,
    }
    if len(libraries) == 2:
        ours, theirs = (medians[library]["load"] for library in LIBRARIES)
        result["load_faster_by"] = round(theirs / ours, 2)
    print(json.dumps(result))


def warm(model: Path) -> None:
    """Read every file once, so that the first round finds the same page cache as the last."""
    for path in [model] if model.is_file() else sorted(model.iterdir()):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def one_process(library: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, str(options.model), "--one", library]
    command += ["--dtype", options.dtype, "--device", options.device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{library} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(library: str, model: Path, dtype: str, device: str) -> dict[str, float]:
    """Load and run once; in a fresh process. Returns seconds."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": model}
    begin = time.perf_counter()
    import torch

    if library == "smollm3":
        from smollm3 import AutoModelForCausalLM
    else:
        from transformers import AutoModelForCausalLM  # type: ignore[assignment]

        if model.is_file():
            where = {"pretrained_model_name_or_path": model.parent, "gguf_file": model.name}
    imported = time.perf_counter()
    loaded_model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, device_map=device)
    synchronize(torch, device)
    loaded = time.perf_counter()
    with torch.inference_mode():
        loaded_model(torch.tensor([[1]], device=device)).logits.float().cpu()
    first = time.perf_counter()
    return dict(zip(MEASURES, (imported - begin, loaded - imported, first - loaded), strict=True))


def synchronize(torch: Any, device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
