"""`smollm3 serve --replicas`: two processes with the small trained model, on a Ray of their own, at a port.

One of them is killed while both are busy; at the end a signal drains both, and nothing is left behind.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from smollm3.cli.main import main

READY = re.compile(
    r"serving smollm2-135m at (?P<url>http://127\.0\.0\.1:\d+)/v1 \(2 replicas, each: (?P<facts>.*)\)\n"
)
SECONDS = 120.0  # that anything may take on a busy machine
PROMPT = "The capital of France is Paris, and the capital of Germany is the old city of"


class Replicas:
    """A running `smollm3 serve smollm2-135m --replicas 2`."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "smollm3", "serve", "smollm2-135m", "--replicas", "2", "--port", "0"]
        self.log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        self.popen = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        match = READY.fullmatch(line)
        if match is None:
            said = (line, self.popen.communicate(), Path(self.log.name).read_text())
            self.log.close()
            pytest.fail(f"the replicas did not start: {said}")
        self.url, self.facts = match["url"], match["facts"]
        self.http = httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False)
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=self.http
        )
        self.session_folder = Path(self.records()[0]["folder"]).parent

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(self.log.name).read_text().splitlines()]

    def logs_of_replicas(self) -> list[dict[str, Any]]:
        lines = [
            line
            for path in self.session_folder.glob("logs/worker-*.err")
            for line in path.read_text().splitlines()
        ]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def pid_of(self, replica: str) -> int:
        return next(int(r["pid"]) for r in self.logs_of_replicas() if r.get("replica") == replica)

    def replica_of(self, session: str) -> str:
        """The name of the replica to which a session's requests go."""
        text = self.http.get("/metrics", headers={"X-Session-ID": session}).raise_for_status().text
        names = set(re.findall(r'\{replica="(\w+)"', text))
        assert len(names) == 1
        return str(names.pop())

    def sessions(self) -> dict[str, str]:
        """A session for each replica that answers, by the replica's name."""
        return {self.replica_of(f"chat {idx}"): f"chat {idx}" for idx in range(16)}

    def complete(self, session: str = "", **fields: Any) -> Any:
        headers = {"X-Session-ID": session} if session else {}
        body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 4, **fields}
        return self.openai.completions.create(model="smollm2-135m", extra_headers=headers, **body)

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate()
        self.http.close()
        self.log.close()
        shutil.rmtree(self.session_folder, ignore_errors=True)


@pytest.fixture(scope="module")
def replicas(small_model: Path) -> Iterator[Replicas]:
    replicas = Replicas("--drain-seconds", "60")
    try:
        yield replicas
    finally:
        replicas.close()


def descendants(pid: int) -> set[int]:
    """The processes below a process, and it."""
    found = {pid}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found |= descendants(int(child))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be counted does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


class Stream(threading.Thread):
    """Reads a long answer; `text` grows, `error` is what broke it."""

    def __init__(self, replicas: Replicas, session: str, num_tokens: int) -> None:
        super().__init__(daemon=True)
        self._request = (replicas, session, num_tokens)
        self.text, self.times = "", list[float]()
        self.finish: str | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        replicas, session, num_tokens = self._request
        # No stop id, so that each answer has its whole length; no lookup, so that it comes id by id.
        fields = {"max_tokens": num_tokens, "logit_bias": {"0": -100, "2": -100}, "stream": True}
        fields["extra_body"] = {"prompt_lookup": False}
        try:
            for chunk in replicas.complete(session, **fields):
                self.times.append(time.monotonic())
                self.text += chunk.choices[0].text
                self.finish = chunk.choices[0].finish_reason
        except Exception as error:
            self.error = error

    def result(self) -> "Stream":
        self.join(SECONDS)
        assert not self.is_alive(), "a stream hangs"
        return self


def test_two_replicas_answer_as_one_server(replicas: Replicas) -> None:
    assert "native engine" in replicas.facts
    assert replicas.complete(max_tokens=2).choices[0].text == " Berlin."
    stream = Stream(replicas, "", 40).result()
    assert (stream.error, stream.finish) == (None, "length")
    gaps = [after - before for before, after in zip(stream.times, stream.times[1:], strict=False)]
    assert len(gaps) >= 20, "it comes token by token"
    assert max(gaps) < (stream.times[-1] - stream.times[0]) * 0.8, "and not all at once"
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        replicas.complete(max_tokens=-1)
    assert replicas.http.get("/health").json() == {"status": "ok"}
    assert replicas.http.get("/nothing").json()["error"]["code"] == "not_found"
    assert replicas.http.get("/health", headers={"Host": "evil.example"}).status_code == 403
    large = replicas.http.post("/v1/completions", content=b" " * 3_000_000)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    named = replicas.http.get("/health", headers={"X-Request-Id": "mine-1"})
    assert named.headers.get_list("X-Request-Id") == ["mine-1"]


def test_only_this_machine_can_reach_it_and_strangers_on_it_cannot_use_ray(replicas: Replicas) -> None:
    sockets = {
        str(link.readlink()).removeprefix("socket:[").removesuffix("]"): pid
        for pid in descendants(replicas.popen.pid)
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if os.path.lexists(link) and str(link.readlink()).startswith("socket:[")
    }
    elsewhere = set()
    for table in ("tcp", "tcp6"):
        for row in (line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]):
            if (
                row[3] == "0A"
                and row[9] in sockets
                and not row[1].startswith(
                    ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")
                )
            ):
                elsewhere.add((sockets[row[9]], int(row[1].rpartition(":")[2], 16)))
    # Serve's own port of each replica cannot be told an address; it asks for the cluster's token.
    names = [replicas.replica_of(session) for session in replicas.sessions().values()]
    assert {pid for pid, _ in elsewhere} == {replicas.pid_of(name) for name in names}
    assert len(elsewhere) == 2
    environment = Path(f"/proc/{next(iter(elsewhere))[0]}/environ").read_bytes().split(b"\0")
    assert b"RAY_AUTH_MODE=token" in environment


def test_a_session_stays_with_the_replica_that_holds_its_past(replicas: Replicas) -> None:
    sessions = replicas.sessions()
    assert len(sessions) == 2
    for name, session in sessions.items():
        words = f"{name} says: {PROMPT}"  # which no other request has sent
        seen = [replicas.complete(session, prompt=words).usage for _ in range(3)]
        cached = [usage.prompt_tokens_details.cached_tokens for usage in seen]
        assert cached[0] < 4
        assert cached[1:] == [seen[0].prompt_tokens - 1] * 2
        assert replicas.replica_of(session) == name


def test_a_client_that_leaves_frees_its_place(replicas: Replicas) -> None:
    [(name, session), *_] = replicas.sessions().items()
    running = f'smollm3_samples_running{{replica="{name}"}}'

    def metrics() -> str:
        return replicas.http.get("/metrics", headers={"X-Session-ID": session}).text

    # The second header asks Ray to go on for a client that has left.
    for headers in (
        {"X-Session-ID": session},
        {"X-Session-ID": session, "x-request-disconnect-disabled": "?1"},
    ):
        body = {"model": "smollm2-135m", "prompt": "The", "max_tokens": 8000, "stream": True}
        body |= {"logit_bias": {"0": -100, "2": -100}}
        with replicas.http.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
            assert reply.status_code == 200, reply.read()
            pieces = reply.iter_raw()  # whose end would close the connection
            next(pieces)
            wait_until(lambda: f"{running} 1" in metrics())
        wait_until(lambda: f"{running} 0" in metrics())


def test_a_killed_replica_takes_only_its_own_requests_along_and_comes_back(replicas: Replicas) -> None:
    sessions = replicas.sessions()
    (lost, lost_session), (_, kept_session) = sessions.items()
    alone = Stream(replicas, kept_session, 80).result()
    victims = [Stream(replicas, lost_session, 2000) for _ in range(3)]
    others = [Stream(replicas, kept_session, 80) for _ in range(3)]
    wait_until(lambda: all(stream.times for stream in victims + others))
    os.kill(replicas.pid_of(lost), signal.SIGKILL)
    for idx in range(20):  # new requests, also of the killed one's session
        answer = replicas.complete(lost_session if idx % 2 else "", max_tokens=2)
        assert answer.choices[0].text == " Berlin."
    for stream in victims:
        assert isinstance(stream.result().error, (openai.APIError, httpx.HTTPError)), stream.text
    assert alone.text
    for stream in others:
        assert stream.result().error is None
        assert (stream.text, stream.finish) == (alone.text, "length")
    wait_until(lambda: len(replicas.sessions()) == 2)
    assert lost not in replicas.sessions()


def test_a_signal_drains_both_and_leaves_nothing_behind(replicas: Replicas) -> None:
    pids = descendants(replicas.popen.pid)
    assert len(pids) > 4
    sessions = replicas.sessions().values()
    streams = [Stream(replicas, session, 120) for session in sessions]
    wait_until(lambda: all(stream.times for stream in streams))
    replicas.popen.send_signal(signal.SIGTERM)
    healths = [{"X-Session-ID": session} for session in sessions]
    wait_until(lambda: all(replicas.http.get("/health", headers=each).status_code == 503 for each in healths))
    with pytest.raises(openai.InternalServerError, match="shutting down"):
        replicas.complete()
    for stream in streams:
        assert (stream.result().error, stream.finish) == (None, "length")
    assert replicas.popen.wait(SECONDS) == 0
    messages = [record["message"] for record in replicas.records()]
    assert messages[-2:] == ["draining", "drained"]
    wait_until(lambda: not [pid for pid in pids if alive(pid)])


@pytest.mark.slow
def test_a_model_that_cannot_be_served_is_one_line(small_model: Path) -> None:
    command = [sys.executable, "-m", "smollm3", "serve", str(small_model), "--replicas", "2", "--port", "0"]
    done = subprocess.run(
        [*command, "--max-model-len", "99999"], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 1
    note, error = done.stderr.splitlines()
    assert error == "error: no replica starts: max_model_len=99999: this model has 2 to 8192"
    shutil.rmtree(Path(json.loads(note)["folder"]).parent, ignore_errors=True)


# What cannot work is one line, before Ray is started


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--header-seconds", "3"], "--header-seconds does nothing with --replicas"),
        (["--max-connections", "9"], "--max-connections does nothing with --replicas"),
        (["--ray-address", "ray://here:1"], "--ray-address 'ray://here:1': give HOST:PORT"),
        (["--ray-address", "6379"], "--ray-address '6379': give HOST:PORT"),
        (["--ray-address", "127.0.0.1:1"], "--ray-address 127.0.0.1:1: no Ray cluster answers there"),
        (["--log-format", "xml"], "--log-format"),
        (["--local-files-only"], "no file or folder no/such/model"),
    ],
)
def test_options_that_cannot_be_meant_are_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["serve", "no/such/model", "--replicas", "2", "--port", "0", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


def test_an_address_without_replicas_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "no/such/model", "--ray-address", "here:6379"]) == 1
    assert "--ray-address is where --replicas run: say how many" in capsys.readouterr().err


def test_a_missing_ray_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3.cli.serve_replicas.PACKAGES", ("ray", "no_such_package"))
    assert main(["serve", "no/such/model", "--replicas", "2"]) == 1
    error = capsys.readouterr().err
    assert "smollm3 serve --replicas needs no_such_package: pip install 'smollm3[replicas]'" in error
