"""The messages of a chat: kept whole through errors, saved as JSON, loaded with care."""

import json
import stat
from pathlib import Path

import pytest

from smollm3.cli.conversation import ChatFileError, Conversation, Message, read_messages
from smollm3.errors import PromptError

ASKED: Message = {"role": "user", "content": "Hi"}
ANSWERED: Message = {"role": "assistant", "content": "Hello é \ud83d", "reasoning_content": "hm"}


def test_a_question_is_part_of_the_chat_once_it_is_answered() -> None:
    chat = Conversation()
    asked = chat.with_question("Hi")
    assert (asked, chat.messages) == ([ASKED], [])
    chat.unanswered = "Hi"
    chat.record(asked, ANSWERED)
    assert chat.messages == [ASKED, ANSWERED]
    assert chat.unanswered is None
    with pytest.raises(PromptError, match="empty"):
        chat.with_question(" \n")


def test_the_system_prompt_comes_first_and_survives_clear() -> None:
    chat = Conversation([ASKED, ANSWERED])
    assert chat.system is None
    chat.set_system("Be brief.")
    chat.set_system("Be long.")
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.system == "Be long."
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "Be long."}]
    chat.set_system(None)
    assert chat.messages == []
    chat.clear()


def test_the_last_question_can_be_asked_again() -> None:
    chat = Conversation()
    with pytest.raises(PromptError, match="ask something first"):
        chat.to_repeat()
    chat.set_system("s")
    with pytest.raises(PromptError):
        chat.to_repeat()
    chat.record(chat.with_question("one"), ANSWERED)
    chat.record(chat.with_question("two"), ANSWERED)
    assert [message["content"] for message in chat.to_repeat() if message["role"] == "user"] == ["one", "two"]
    assert chat.to_repeat()[-1]["content"] == "two"
    chat.unanswered = "three"
    assert chat.to_repeat() == [*chat.messages, {"role": "user", "content": "three"}]


def test_saved_and_loaded_is_the_same_and_private(tmp_path: Path) -> None:
    chat = Conversation([ASKED, ANSWERED])
    path = chat.save(tmp_path / "new" / "chat.json", model="small")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["chat.json"], "no temporary file stays"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["format"], content["model"]) == ("smollm3-chat-1", "small")
    assert "Hello é" in path.read_text(encoding="utf-8")
    other = Conversation([{"role": "user", "content": "old"}], unanswered="x")
    assert other.load(path) == 2
    assert (other.messages, other.unanswered, other.path) == ([ASKED, ANSWERED], None, path)
    other.record(other.with_question("more"), ANSWERED)
    assert other.save(None, model="small") == path, "a chat goes back to its own file"
    assert len(read_messages(path)) == 4


def test_no_file_is_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("dear")
    chat = Conversation([ASKED])
    with pytest.raises(ChatFileError, match="is there already: /save --force") as caught:
        chat.save(path, model="m")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "dear"
    chat.save(path, model="m", overwrite=True)
    assert read_messages(path) == [ASKED]
    with pytest.raises(ChatFileError, match="/save needs a file"):
        Conversation().save(None, model="m")


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChatFileError, match="cannot be written"):
        Conversation([ASKED]).save(tmp_path / "file" / "chat.json", model="m")
    with pytest.raises(ChatFileError, match="cannot be written"):
        Conversation([ASKED]).save(tmp_path, model="m", overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"], "no temporary file stays"


def test_a_bare_list_of_messages_loads_too(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"role": "system", "content": "s"}, ASKED]))
    assert len(read_messages(path)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON file of messages"),
        (b"{", "no JSON file of messages"),
        (b"\xff\xfe", "no JSON file of messages"),
        (b"[" * 100_000, "no JSON file of messages"),
        (b"\x80\x04\x95", "no JSON file of messages"),
        (b"3", "holds no messages"),
        (b'{"chats": []}', "holds no messages"),
        (b'["hi"]', "message 1 is no JSON object"),
        (b'[{"content": "hi"}]', "message 1 has role None"),
        (b'[{"role": "root", "content": "hi"}]', "has role 'root'"),
        (b'[{"role": ["user"], "content": "hi"}]', "has role"),
        (b'[{"role": "user", "content": 3}]', "content must be a text"),
        (b'[{"role": "user"}]', "a user message needs a text"),
        (b'[{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]', "can only come first"),
    ],
)
def test_a_file_that_is_no_chat_changes_nothing(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    chat = Conversation([ASKED], unanswered="open")
    with pytest.raises(ChatFileError, match=message):
        chat.load(path)
    assert (chat.messages, chat.unanswered, chat.path) == ([ASKED], "open", None)


def test_a_missing_file_or_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ChatFileError, match="is not there"):
        Conversation().load(tmp_path / "none.json")
    with pytest.raises(ChatFileError, match="cannot be read"):
        Conversation().load(tmp_path)
