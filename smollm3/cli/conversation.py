"""A chat's messages: asked, answered, taken back, saved to a file and loaded again.

In: texts and answers. Out: message dicts as chat templates read them, and JSON files of them. Knows no model
and no terminal. Whatever fails leaves the messages as they were.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3.errors import PromptError, SmolLM3Error

Message = dict[str, Any]
FORMAT = "smollm3-chat-1"
_ROLES = ("assistant", "system", "tool", "user")
_MAX_FILE_BYTES = 64 * 2**20


class ChatFileError(SmolLM3Error, OSError):
    """A chat file that cannot be read or written."""


@dataclass
class Conversation:
    """The messages so far; a system message, if any, comes first."""

    messages: list[Message] = field(default_factory=list)
    # A question whose answer failed: taken out of the messages, kept for `/regenerate`.
    unanswered: str | None = None
    # The file of this chat: where it was saved or loaded last.
    path: Path | None = None

    @property
    def system(self) -> str | None:
        """The system prompt, None without one."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    def set_system(self, text: str | None) -> None:
        """Replace the system prompt; None or an empty text removes it."""
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def with_question(self, text: str) -> list[Message]:
        """Return the messages that ask `text` next; nothing is changed before the answer is there."""
        if not text.strip():
            raise PromptError("the message is empty: type one")
        return [*self.messages, {"role": "user", "content": text}]

    def record(self, asked: Sequence[Message], answer: Message) -> None:
        """Make `asked` (from `with_question` or `to_repeat`) and its answer the messages."""
        self.messages = [*asked, answer]
        self.unanswered = None

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = self.messages[:1] if self.system is not None else []
        self.unanswered = None

    def to_repeat(self) -> list[Message]:
        """Return the messages that ask the last question again. Raises PromptError when none was asked."""
        if self.unanswered is not None:
            return self.with_question(self.unanswered)
        roles = [message["role"] for message in self.messages]
        if "user" not in roles:
            raise PromptError("there is no answer to regenerate yet: ask something first")
        return self.messages[: len(roles) - roles[::-1].index("user")]

    def save(self, path: Path | None, *, model: str, overwrite: bool = False) -> Path:
        """Write the messages as JSON, readable by the user alone, and return where.

        Another chat's file, or any other file, is only replaced when `overwrite` says so.
        """
        path = path or self.path
        if path is None:
            raise ChatFileError("/save needs a file: /save FILE")
        path = path.expanduser()
        if path.exists() and not overwrite and path.resolve() != (self.path and self.path.resolve()):
            raise ChatFileError(f"{path} is there already: /save --force {path} replaces it")
        content = {"format": FORMAT, "model": model, "messages": self.messages}
        text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
        try:
            _write_private(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise ChatFileError(f"{path} cannot be written: {error.strerror or error}") from error
        self.path = path
        return path

    def load(self, path: Path) -> int:
        """Replace the messages by a file's and return how many there are; on any error nothing changes."""
        path = path.expanduser()
        self.messages = read_messages(path)
        self.unanswered = None
        self.path = path
        return len(self.messages)


def read_messages(path: Path) -> list[Message]:
    """Read a chat file: what `/save` wrote, or a bare JSON list of messages."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ChatFileError(f"{path} is larger than {_MAX_FILE_BYTES // 2**20} MiB: that is no chat")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ChatFileError(f"{path} is not there") from None
    except OSError as error:
        raise ChatFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ChatFileError(f"{path} is no JSON file of messages: {error}") from error
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list):
        raise ChatFileError(f"{path} holds no messages: give a JSON list of messages, or what /save wrote")
    _check_messages(path, messages)
    return messages


def _check_messages(path: Path, messages: Sequence[object]) -> None:
    for idx, message in enumerate(messages):
        where = f"{path}: message {idx + 1}"
        if not isinstance(message, dict):
            raise ChatFileError(f"{where} is no JSON object")
        if message.get("role") not in _ROLES:
            role = message.get("role")
            raise ChatFileError(f"{where} has role {role!r}: use one of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str | list | None):
            raise ChatFileError(f"{where}: content must be a text")
        if message["role"] in ("system", "user") and not isinstance(message.get("content"), str):
            raise ChatFileError(f"{where}: a {message['role']} message needs a text as content")
        if message["role"] == "system" and idx > 0:
            raise ChatFileError(f"{where}: a system message can only come first")


def _write_private(path: Path, data: bytes) -> None:
    """Write through a temporary file beside `path` (mode 0600): a failure leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
