"""llama.cpp on GGUF files, as an oracle: its ids of a text, its greedy answer, its log-probabilities."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Taking a server down can block for ever, so one process of its own has all of them and is killed at the end.
_SERVE = """
import sys, xllamacpp
servers = []
for path in sys.stdin:
    params = xllamacpp.CommonParams()
    params.model.path = path.strip()
    params.hostnames = ["127.0.0.1"]
    params.port, params.n_ctx, params.n_parallel, params.warmup = 0, 512, 1, False
    params.cpuparams.n_threads = 1
    servers.append(xllamacpp.Server(params))
    print(servers[-1].listening_address, flush=True)
"""


class LlamaCpp:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._addresses: dict[Path, str] = {}

    def post(self, path: Path, route: str, **body: Any) -> Any:
        """Ask the server of a file, which starts with the first question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if path not in self._addresses:
            print(path, file=self._process.stdin, flush=True)
            self._addresses[path] = self._process.stdout.readline().strip()
        assert self._addresses[path], f"llama.cpp does not load {path}"
        request = urllib.request.Request(
            self._addresses[path] + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def tokenize(
        self, path: Path, text: str, *, parse_special: bool = True, add_special: bool = False
    ) -> list[int]:
        """The ids of a text; special tokens that it spells count, bos and eos are not put around it."""
        body = {"content": text, "parse_special": parse_special, "add_special": add_special}
        return list(self.post(path, "/tokenize", **body)["tokens"])

    def greedy(self, path: Path, prompt_ids: list[int], count: int) -> list[int]:
        body = {"prompt": prompt_ids, "n_predict": count, "temperature": 0, "return_tokens": True}
        return list(self.post(path, "/completion", cache_prompt=False, **body)["tokens"])

    def next_logprobs(self, path: Path, prompt_ids: list[int]) -> dict[int, float]:
        """Log-probabilities of the likeliest ids after a prompt."""
        body = {"prompt": prompt_ids, "n_predict": 1, "n_probs": 64, "temperature": -1.0}
        answer = self.post(path, "/completion", cache_prompt=False, **body)
        return {top["id"]: top["logprob"] for top in answer["completion_probabilities"][0]["top_logprobs"]}


@contextmanager
def llama_cpp_process() -> Iterator[LlamaCpp]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _SERVE]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield LlamaCpp(process)
        finally:
            process.kill()
