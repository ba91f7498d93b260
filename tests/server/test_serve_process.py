"""`smollm3 serve` as a process: its line, its signals, its exit codes, its ports, what it leaves behind."""

import contextlib
import itertools
import json
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from raw_clients import connected, endless, parse, read_all, read_reply, request, wait_until
from tiny_models import tiny_model, write_tokenizer

from smollm3.cli.main import main
from smollm3.cli.serve import ServeOptions, read_bytes, read_keys
from smollm3.errors import ParameterError
from smollm3.model.smollm3 import SmolLM3ForCausalLM

READY = re.compile(r"serving (?P<model>\S+) at http://127\.0\.0\.1:(?P<port>\d+)/v1 \((?P<facts>.*)\)\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that the native engine runs."""
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    model = tiny_model(
        SmolLM3ForCausalLM, hidden_size=64, intermediate_size=64, max_position_embeddings=32_768
    )
    model.bfloat16().save_pretrained(path)
    return write_tokenizer(path)


class Process:
    """A running `smollm3 serve`."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "smollm3", "serve", str(folder), "--served-model-name", "tiny"]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.popen = subprocess.Popen(
            [*command, "--port", "0", "--threads", "1", *options],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        match = READY.fullmatch(line)
        assert match, (line, self.popen.communicate())
        self.port = int(match["port"])
        self.facts = match["facts"]

    def get(self, path: str) -> tuple[int, dict[str, object]]:
        with connected(self.port) as connection:
            connection.sendall(request("GET", path))
            return parse(read_reply(connection))

    def end(self, seconds: float = 10) -> tuple[int, list[dict[str, object]]]:
        """Wait for the end; return the exit code and the log."""
        self.popen.communicate(timeout=seconds)
        self.log.seek(0)
        records = [json.loads(line) for line in self.log]
        self.log.close()
        return self.popen.returncode, records


@pytest.fixture
def process(folder: Path) -> Iterator[Process]:
    process = Process(folder, "--drain-seconds", "1")
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.communicate()
        process.log.close()


def test_it_says_that_it_is_ready_and_sigterm_ends_it(process: Process) -> None:
    assert process.get("/health") == (200, {"status": "ok"})
    assert "native engine" in process.facts
    assert "KV cache up to" in process.facts
    process.popen.send_signal(signal.SIGTERM)
    code, log = process.end()
    assert code == 0
    assert "draining" in [record["message"] for record in log]


def test_sigterm_drains_refuses_new_work_and_cuts_off_what_takes_too_long(process: Process) -> None:
    with connected(process.port) as running:
        running.sendall(endless())
        assert running.recv(100).startswith(b"HTTP/1.1 200")
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: process.get("/health") == (503, {"status": "draining"}))
        with connected(process.port) as late:
            late.sendall(endless())
            status, body = parse(read_reply(late))
            assert (status, body["error"]["code"]) == (503, "shutting_down")
        rest = read_all(running)
    assert b"shutting down" in rest
    code, _ = process.end()
    assert code == 1


def test_a_short_answer_is_finished_while_draining(process: Process) -> None:
    with connected(process.port) as running:
        running.sendall(endless(max_tokens=200))
        assert running.recv(100).startswith(b"HTTP/1.1 200")
        process.popen.send_signal(signal.SIGINT)
        assert b"data: [DONE]" in read_all(running)
    assert process.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_aborts_at_once(folder: Path, number: signal.Signals) -> None:
    process = Process(folder, "--drain-seconds", "60")
    with connected(process.port) as running:
        running.sendall(endless())
        assert running.recv(100).startswith(b"HTTP/1.1 200")
        process.popen.send_signal(number)
        wait_until(lambda: process.get("/health")[0] == 503)
        began = time.monotonic()
        process.popen.send_signal(number)
        code, _ = process.end()
        assert time.monotonic() - began < 2
    assert code == 128 + number


def test_a_log_that_nobody_reads_stops_neither_the_server_nor_its_end(folder: Path) -> None:
    command = [sys.executable, "-m", "smollm3", "serve", str(folder), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as popen:
        try:
            match = READY.fullmatch(popen.stdout.readline())  # type: ignore[union-attr]
            assert match
            with connected(int(match["port"])) as connection:
                for idx in range(400):  # a pipe holds 64 KiB
                    connection.sendall(request("GET", f"/{'x' * 600}/{idx}"))
                    assert parse(read_reply(connection))[0] == 404
            began = time.monotonic()
            popen.send_signal(signal.SIGTERM)
            assert popen.wait(10) == 0
            assert time.monotonic() - began < 5
            written = popen.stderr.read()  # type: ignore[union-attr]
        finally:
            popen.kill()
    assert len(written) > 50_000
    assert all(json.loads(line) for line in written.splitlines()[:-1])
    assert "Fatal Python error" not in written


def _listening(pid: int) -> set[int]:
    """The TCP ports on which a process listens, by /proc."""
    own = {
        name.removeprefix("socket:[").removesuffix("]")
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if (name := str(link.readlink())).startswith("socket:[")
    }
    rows = [
        line.split()
        for table in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return {int(row[1].split(":")[1], 16) for row in rows if row[9] in own and row[3] in ("0A", "07")}


def test_case_40_one_port_is_open_and_no_child_runs(process: Process) -> None:
    assert _listening(process.popen.pid) == {process.port}
    children = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children")
    assert not children.exists() or children.read_text() == ""
    for record in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        address, port = record.split()[1].split(":")
        if int(port, 16) == process.port and record.split()[3] == "0A":
            assert address == "0100007F", "it listens on 127.0.0.1 alone"


def test_case_32_hundreds_of_requests_leave_no_descriptor_thread_or_memory(process: Process) -> None:
    pid = process.popen.pid

    def resident() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))  # type: ignore[union-attr]

    def burst(num: int) -> None:
        for idx in range(num):
            with contextlib.suppress(ConnectionError), connected(process.port) as connection:
                connection.sendall(endless(max_tokens=3, seed=idx) if idx % 3 else endless())
                if idx % 3:
                    assert b"[DONE]" in _until_done(connection)
                else:
                    connection.recv(10)

    burst(150)
    wait_until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) < 40)
    before, descriptors = resident(), len(list(Path(f"/proc/{pid}/fd").iterdir()))
    threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    burst(300)
    wait_until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) <= descriptors)
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) <= threads + 1
    assert resident() - before < 12_000  # KB


HEAP_BYTES = 64 * 2**20  # glibc's HEAP_MAX_SIZE: an arena's address space begins at a multiple of it


def _arenas(pid: int) -> int:
    """Count glibc's arenas beside the first: mappings without a file that begin where one may, and in use."""
    lines = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    spans = [(*(int(end, 16) for end in line[0].split("-")), line[1], len(line)) for line in lines]
    return sum(
        begin % HEAP_BYTES == 0
        and (rights, fields) == ("rw-p", 5)
        and (follower, (after - begin) % HEAP_BYTES, guard) == (end, 0, "---p")
        for (begin, end, rights, fields), (follower, after, guard, _) in itertools.pairwise(spans)
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_share_one_arena_of_the_c_library(process: Process) -> None:
    """Else each of asyncio's pool and of the grammars' threads keeps the most that it ever had."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    messages = [{"role": "user", "content": "a b c " * 2000}]
    for _ in range(4):
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connected(process.port)) for _ in range(8)]
            for connection in connections:
                body = {"model": "tiny", "messages": messages, "max_tokens": 2, "response_format": form}
                connection.sendall(request("POST", "/v1/chat/completions", json.dumps(body).encode()))
            for connection in connections:
                status, reply = parse(read_reply(connection))
                assert status == 200, reply
    assert len(list(Path(f"/proc/{process.popen.pid}/task").iterdir())) > 5
    assert _arenas(process.popen.pid) == 1


def _until_done(connection: socket.socket) -> bytes:
    data = b""
    while b"[DONE]" not in data:
        piece = connection.recv(65536)
        if not piece:
            break
        data += piece
    return data


# What cannot work is one line


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_port_in_use_is_one_line_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "in use" in error_of(capsys, "no/such/model", "--port", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "999.1.1.1", "203.0.113.7"])
def test_a_host_that_is_not_here_is_one_line(capsys: pytest.CaptureFixture[str], host: str) -> None:
    assert host in error_of(capsys, "no/such/model", "--port", "0", "--host", host)


def test_a_missing_package_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3.cli.serve.PACKAGES", ("starlette", "no_such_package"))
    assert "needs no_such_package: pip install 'smollm3[serve]'" in error_of(capsys, "no/such/model")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--log-format", "xml"], "--log-format"),
        (["--cache-per-key"], "--cache-per-key"),
        (["--cors-origin", "nonsense"], "--cors-origin"),
        (["--header-seconds", "0"], "header_seconds"),
        (["--api-key", ""], "API key"),
        (["--api-key-file", "/no/such/file"], "--api-key-file"),
        (["--kv-memory", "much"], "--kv-memory"),
    ],
)
def test_options_that_cannot_be_meant_are_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert words in error_of(capsys, "no/such/model", "--port", "0", *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--engine", "torch", "--threads", "2"],
        ["--engine", "fast"],
        ["--kv-bits", "3"],
        ["--kv-memory", "1KB"],
        ["--max-model-len", "99999"],
    ],
    ids=" ".join,
)
def test_options_that_the_model_cannot_follow_are_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, options: list[str]
) -> None:
    name = options[-2].removeprefix("--").replace("-", "_")
    assert name in error_of(capsys, str(folder), "--port", "0", *options)


def test_keys_come_from_options_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# the team\n sk-b \n\nsk-c\n")
    monkeypatch.setenv("SMOLLM3_API_KEY", "sk-d")
    assert read_keys(ServeOptions(api_keys=("sk-a",), api_key_file=file)) == ("sk-a", "sk-b", "sk-c", "sk-d")
    file.write_text("# nothing\n")
    with pytest.raises(ParameterError, match="has no key"):
        read_keys(ServeOptions(api_key_file=file))


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("512MiB", 512 * 2**20), ("1.5gb", 15 * 10**8), ("1000", 1000), ("7 kB", 7000)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1TB?", "nan", "inf", "0"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ParameterError):
        read_bytes(text)
