"""The installed command as a person uses it: in a pseudo-terminal, with the small trained model."""

import fcntl
import json
import os
import pty
import select
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emulator import Terminal

COMMAND = str(Path(sys.executable).with_name("smollm3"))
PATIENCE = 90  # seconds; only a program that hangs uses them up


class Person:
    """Somebody at a terminal: types, looks at the screen, waits for what should appear."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.screen = Terminal(80, 24)
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {
            key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        environment |= {"TERM": "xterm-256color", "XDG_STATE_HOME": str(folder), "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            [COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self._pending = b""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def look(self, seconds: float = 0.1) -> bool:
        """Take in what has been written; False at the end."""
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            data = self._pending + os.read(self._ours, 65536)
        except OSError:  # the other side is closed
            return False
        text = data.decode("utf-8", "ignore")
        self._pending = data[len(text.encode()) :]
        self.screen.write(text.replace("\r\n", "\n"))
        return bool(data)

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.look() or condition(), "the program ended:\n" + "\n".join(self.screen.lines)
            assert time.monotonic() < deadline, "waited in vain:\n" + "\n".join(self.screen.lines)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.lines)

    def wait_for_prompt(self, after: int = 0) -> None:
        """Wait for an empty prompt below `after` lines."""
        self.wait_for(lambda: len(self.screen.lines) > after and self.screen.lines[-1] == ">")

    def command(self, line: str) -> str:
        """Type a line, wait for the next prompt and return what appeared between."""
        before = len(self.screen.lines)
        self.type(line + "\r")
        self.wait_for_prompt(before)
        return "\n".join(self.screen.lines[before:-1])

    def leave(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while self.look() and time.monotonic() < deadline:
            pass
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


@pytest.fixture
def person(small_model: Path, tmp_path: Path) -> Iterator[Person]:
    person = Person(["chat", str(small_model), "--dtype", "float32", "--device", "cpu"], tmp_path)
    yield person
    person.close()


def test_a_chat(person: Person, tmp_path: Path) -> None:
    person.wait_for_prompt()
    facts = "135 million parameters in 538.1 MB, float32 on cpu, context of 8,192 tokens"
    assert facts.replace(" ", "") in "".join(person.text.split())  # the file's name decides where lines break
    # An answer that is stopped by Ctrl-C stays, as far as it came.
    person.type("Tell a long story about a dragon.\r")
    person.wait_for(lambda: len(person.text.partition("about a dragon.")[2]) > 20)
    person.type("unseen")
    person.type("\x03")
    person.wait_for(lambda: "stopped: the answer so far is part of the chat" in person.text)
    person.type("\x15")  # Ctrl-U takes back what was typed meanwhile
    person.wait_for_prompt()
    assert "Traceback" not in person.text
    # Settings, another answer to the same message.
    assert person.command("/set max_new_tokens 6") == "max_new_tokens: 6"
    assert "cut off at 6 tokens" in person.command("/regenerate")
    assert "error: top_p=7.0" in person.command("/set top_p 7")
    # A question of several lines.
    person.type("What is the capital of\\\r")
    person.wait_for(lambda: person.screen.lines[-1] == ".")
    assert "The capital of France is Paris" in person.command("France?")
    # Save, start over, load.
    assert "saved 4 messages to chat.json" in person.command("/save chat.json")
    assert "started over" in person.command("/clear")
    assert "loaded 4 messages" in person.command("/load chat.json")
    # Ctrl-C at the prompt drops the line and nothing else.
    person.type("half a line")
    person.wait_for(
        lambda: person.screen.lines[-1] == "> half a line"
    )  # it is being read: no signal is too early
    person.type("\x03")
    person.wait_for(lambda: "(Ctrl-D or /exit leaves)" in person.text)
    person.wait_for_prompt()
    person.type("/exit\r")
    assert person.leave() == 0
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[2]["content"] == "What is the capital of\nFrance?"
    assert messages[3]["content"].startswith("The capital of France is Paris")
    history = tmp_path / "smollm3" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    assert entries[-1] == "/exit"
    assert "What is the capital of\nFrance?" in entries
    assert "half a line" not in entries


def babbling(model: Path) -> "subprocess.Popen[bytes]":
    """Start an answer that goes on until it is stopped."""
    options = ["-m", str(model), "-t", "1", "--seed", "1", "--max-new-tokens", "90000"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [COMMAND, "generate", *options, "Go on."],
        stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, bufsize=0,
    )  # fmt: skip


def test_ctrl_c_while_generating_is_130(chatterbox: Path) -> None:
    with babbling(chatterbox) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        begin = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, error = process.stdout.read(), process.stderr.read()
        assert process.wait(PATIENCE) == 130
    assert (begin + rest).endswith(b"\n")
    assert error == b""


def test_a_reader_that_leaves_stops_the_answer(chatterbox: Path) -> None:
    with babbling(chatterbox) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1


def test_a_chat_file_that_is_not_there_is_said_at_once(small_model: Path, tmp_path: Path) -> None:
    other = Person(["chat", str(small_model), "--load", "none.json"], tmp_path)
    try:
        assert other.leave() == 1
        assert other.screen.lines == ["error: none.json is not there"]
    finally:
        other.close()
