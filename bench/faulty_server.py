"""The server under faulty clients: a process of its own with tight limits, its log, what it holds at rest.

In: a model and options. Out: a Target, what it holds, and FaultError for what it should have given back.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faulty_wire import Bounds, FaultError, Target, Wire, request
from serve_client import Address

from smollm3 import AutoModelForCausalLM, AutoTokenizer
from smollm3.text.chat_template import fixed_template

KEYS = ("sk-honest-1", "sk-honest-2")
READY = re.compile(r"serving (?P<model>\S+) at http://127\.0\.0\.1:(?P<port>\d+)/v1 ")
# What must be so when nobody asks for anything; the question itself is the one open request.
AT_REST = {
    "up": 1, "requests_active": 0, "http_requests_open": 1, "samples_waiting": 0, "samples_running": 0,
    "cache_slots_open": 0, "cache_tokens_used": 0,
}  # fmt: skip
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)  # asyncio's own, which come when they are first needed
STOP_SECONDS = 40.0


@dataclass(frozen=True)
class Held:
    """What the process holds. Memory in bytes."""

    fds: int
    threads: int
    resident: int


@dataclass
class Server:
    """The process; `at_start` is what it held before the first faulty client."""

    target: Target
    process: "subprocess.Popen[str]"
    log: Path
    at_start: Held | None = None
    levels: dict[str, int] = field(default_factory=dict)  # records of the log
    _read: int = 0  # bytes of it

    def held(self) -> Held:
        folder = Path(f"/proc/{self.process.pid}")
        status = (folder / "status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+)", status)
        fds, threads = (sum(1 for _ in (folder / name).iterdir()) for name in ("fd", "task"))
        return Held(fds, threads, 1024 * int(resident.group(1)) if resident else 0)

    async def at_rest(self, seconds: float) -> Held:
        """Wait until it holds nothing of anybody; FaultError with what is left after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            left = await self._left()
            held = self.held()
            if self.at_start is not None:
                if held.fds > self.at_start.fds:
                    left.append(f"{held.fds} descriptors instead of {self.at_start.fds}")
                if held.threads > self.at_start.threads + POOL_THREADS:
                    left.append(f"{held.threads} threads, {self.at_start.threads} at the start")
            if not left:
                return held
            if time.monotonic() > deadline:
                raise FaultError(f"{seconds:.0f} s after the last client: {', '.join(left)}")
            await asyncio.sleep(0.2)

    async def _left(self) -> list[str]:
        found = await self.metrics()
        return [f"{name} {found.get(name)}" for name, value in AT_REST.items() if found.get(name) != value]

    async def metrics(self) -> dict[str, float]:
        """Return /metrics by name, without smollm3_; FaultError unless /health is 200 too."""
        texts = []
        for path in ("/health", "/metrics"):
            wire = await Wire.open(self.target)
            try:
                await wire.send(request(self.target, path, method="GET"))
                reply = await wire.reply()
            finally:
                wire.close()
            if reply is None or reply.status != 200:
                raise FaultError(f"{path} at rest: {reply}")
            texts.append(reply.body.decode())
        lines = [line.rpartition(" ") for line in texts[1].splitlines() if not line.startswith("#")]
        return {name.removeprefix("smollm3_"): float(value) for name, _, value in lines}

    def check_log(self) -> None:
        """Read what is new of the log; FaultError for an error, an exception or a line that is no record."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        lines = data.splitlines(keepends=True)
        wrong = []
        for line in lines:
            if not line.endswith(b"\n"):
                break
            self._read += len(line)
            try:
                record = json.loads(line)
                level = record["level"]
            except (ValueError, TypeError, KeyError):
                wrong.append(line.decode(errors="replace"))
                continue
            self.levels[level] = self.levels.get(level, 0) + 1
            if level in ("error", "critical") or "exception" in record:
                wrong.append(line.decode())
        if wrong:
            raise FaultError(f"{len(wrong)} faults in the log, the first: {wrong[0][:4000]}")

    def stop(self) -> None:
        """End it by SIGTERM; FaultError unless it ends well, in time, and leaves no process behind."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise FaultError(f"it has not ended {STOP_SECONDS:.0f} s after SIGTERM") from None
        if code != 0:
            raise FaultError(f"exit code {code} after SIGTERM")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 0)
            raise FaultError("a process of it is left")
        self.check_log()


@contextlib.contextmanager
def serving(options: argparse.Namespace) -> Iterator[Server]:
    """Run a server for the block; FaultError when it does not come up."""
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as folder:
        log, model = Path(folder) / "log", options.model
        if not options.keep_template:
            model = str(_with_template(model, Path(folder) / "model"))
        environment = {name: value for name, value in os.environ.items() if name != "SMOLLM3_API_KEY"}
        with log.open("wb") as err:
            process = subprocess.Popen(
                _command(model, options, bounds),
                stdout=subprocess.PIPE,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=environment,
                text=True,
                start_new_session=True,
            )
        assert process.stdout is not None
        try:
            match = READY.match(process.stdout.readline())
            if match is None:
                raise FaultError(f"the server does not start: {log.read_text(errors='replace')[-2000:]}")
            address = Address("127.0.0.1", int(match["port"]))
            target = Target(address, match["model"], KEYS, process.pid, bounds, options.wait)
            yield Server(target, process, log)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _with_template(model: str, folder: Path) -> Path:
    """Write a model into a folder with SmolLM3's template, so that its chats have tools and thoughts."""
    AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16").save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(fixed_template(), encoding="utf-8")
    return folder


def _command(model: str, asked: argparse.Namespace, bounds: Bounds) -> list[str]:
    options = {
        "served-model-name": "model",
        "port": 0,
        "threads": asked.threads,
        "kv-memory": asked.kv_memory,
        "max-model-len": bounds.context,
        "max-concurrent": bounds.requests,
        "max-connections": bounds.connections,
        "max-body-bytes": bounds.body_bytes,
        "max-header-bytes": bounds.header_bytes,
        "header-seconds": bounds.header_seconds,
        "body-seconds": bounds.body_seconds,
        "write-seconds": bounds.write_seconds,
        "drain-seconds": 20,
    }
    line = [sys.executable, "-m", "smollm3", "serve", model, "--ui", "--engine", "native", "--cache-per-key"]
    for key in KEYS:
        line += ["--api-key", key]
    for name, value in options.items():
        line += [f"--{name}", str(value)]
    return line
