"""Run as a program: load a folder with from_pretrained and print, as JSON, what it cost in memory.

`python load_memory.py FOLDER DTYPE`. Anonymous memory is what a process cannot give back; pages of a mapped
file are counted apart, for the system drops them as it likes.
"""

import json
import sys
import threading
import time
from pathlib import Path

import torch

from smollm3.model.smollm3 import SmolLM3ForCausalLM


def rss(kind: str) -> int:
    """Bytes of the process's memory of a kind (RssAnon, RssFile)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {kind} in /proc/self/status")


def main(folder: str, dtype: str) -> None:
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, rss("RssAnon"))
            time.sleep(0.001)

    # A first pass through the code, so that only weights are counted below.
    torch.ones(8, dtype=torch.bfloat16).to(torch.float16)
    before = rss("RssAnon")
    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    model = SmolLM3ForCausalLM.from_pretrained(folder, dtype=dtype)
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    loaded = rss("RssAnon")
    imported = [name for name in ("torch._dynamo", "gguf", "tokenizers") if name in sys.modules]
    total = sum(float(parameter.detach()[..., 0].double().sum()) for parameter in model.parameters())
    sizes = [parameter.nbytes for parameter in model.parameters()]
    report = {
        "copy": sum(sizes),
        "largest": max(sizes),
        "peak": max(peak, loaded) - before,
        "loaded": loaded - before,
        "read": rss("RssAnon") - before,
        "seconds": seconds,
        "total": total,
        "imported": imported,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
