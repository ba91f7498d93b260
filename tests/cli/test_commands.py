"""The slash commands, on a session without a model."""

from pathlib import Path

import pytest

from smollm3.cli.commands import COMMANDS, Session, is_command, message_of, run_command
from smollm3.cli.settings import NAMES, Settings
from smollm3.errors import SmolLM3Error


@pytest.fixture
def session() -> Session:
    session = Session("small")
    session.conversation.record(
        session.conversation.with_question("Hi"), {"role": "assistant", "content": "Hello"}
    )
    return session


def test_help_lists_every_command(session: Session) -> None:
    text = run_command(session, "/help").text
    assert set(COMMANDS) == {
        "/help", "/set", "/show", "/system", "/think", "/no_think", "/save", "/load", "/clear",
        "/regenerate", "/exit",
    }  # fmt: skip
    assert all(command.usage in text and command.help in text for command in COMMANDS.values())
    assert max(map(len, text.splitlines())) < 80


def test_what_is_a_command() -> None:
    assert is_command("/set x")
    assert not is_command("//etc/hosts")
    assert not is_command("look at /etc")
    assert not is_command("/usr\nis a folder")
    assert message_of("//etc/hosts") == "/etc/hosts"
    assert message_of("hi") == "hi"


def test_set_changes_and_shows(session: Session) -> None:
    assert run_command(session, "/set temperature 0.5").text == "temperature: 0.5"
    assert run_command(session, "/set top_k=3").text == "top_k: 3"
    assert run_command(session, "/set max-new-tokens 9").text == "max_new_tokens: 9"
    assert session.settings == Settings(temperature=0.5, top_k=3, max_new_tokens=9)
    assert run_command(session, "/set temperature").text.startswith("temperature: 0.5 (")
    listing = run_command(session, "/set").text
    assert all(name in listing for name in NAMES)
    assert max(map(len, listing.splitlines())) < 80
    run_command(session, "/set temperature default")
    assert session.settings.temperature is None


def test_show_sums_the_chat_up(session: Session) -> None:
    run_command(session, "/system Be kind.")
    run_command(session, "/set top_k 5")
    session.conversation.unanswered = "still open"
    text = run_command(session, "/show").text
    for part in ("small", "Be kind.", "3 (1 from you)", "top_k 5", "/regenerate"):
        assert part in text
    assert "all default" in run_command(Session("m"), "/show").text


def test_system_is_set_shown_and_removed(session: Session) -> None:
    assert run_command(session, "/system").text == "system: none"
    run_command(session, "/system You are  terse.")
    assert session.conversation.system == "You are  terse."
    assert run_command(session, "/system").text == "system: You are  terse."
    run_command(session, "/system none")
    assert session.conversation.system is None
    assert len(session.conversation.messages) == 2


def test_thinking_is_switched_where_the_model_can(session: Session) -> None:
    run_command(session, "/think")
    assert session.settings.thinking is True
    run_command(session, "/no_think")
    assert session.settings.thinking is False
    session.can_think = False
    for line in ("/think", "/set thinking on"):
        with pytest.raises(SmolLM3Error, match="no thinking mode"):
            run_command(session, line)
    assert session.settings.thinking is False
    run_command(session, "/no_think")


def test_save_load_and_clear(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "my chat.json"
    assert run_command(session, f"/save {path}").text == f"saved 2 messages to {path}"
    run_command(session, "/system s")
    assert "system prompt stays" in run_command(session, "/clear").text
    assert len(session.conversation.messages) == 1
    assert run_command(session, f"/load {path}").text == f"loaded 2 messages from {path}"
    assert [message["content"] for message in session.conversation.messages] == ["Hi", "Hello"]
    assert run_command(session, "/save").text.endswith(str(path)), "back to its own file"
    other = Session("m")
    with pytest.raises(SmolLM3Error, match="--force"):
        run_command(other, f"/save {path}")
    run_command(other, f"/save --force {path}")
    assert path.read_text().count('"role"') == 0


def test_what_the_chat_does_next(session: Session) -> None:
    assert run_command(session, "/regenerate").action == "regenerate"
    assert run_command(session, "/exit").action == "exit"
    assert run_command(session, "/EXIT ").action == "exit"
    assert run_command(session, "/show").action == "none"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/foo", "there is no command /foo: /help lists them, //foo sends it"),
        ("/etc/hosts", "//etc/hosts sends it as a message"),
        ("/", "there is no command /"),
        ("/clear now", "/clear takes nothing after it"),
        ("/exit 3", "takes nothing"),
        ("/set colour red", "there is no setting 'colour'"),
        ("/set colour", "there is no setting 'colour'"),
        ("/set top_p 3", "top_p=3.0"),
        ("/load", "/load needs a file"),
        ("/load /no/such/file", "is not there"),
        ("/save", "/save needs a file"),
    ],
)
def test_a_failing_command_is_one_line_and_loses_nothing(session: Session, line: str, message: str) -> None:
    messages, settings = list(session.conversation.messages), session.settings
    with pytest.raises(SmolLM3Error, match=message) as caught:
        run_command(session, line)
    assert "\n" not in str(caught.value)
    assert (session.conversation.messages, session.settings) == (messages, settings)


def test_regenerate_needs_a_question() -> None:
    with pytest.raises(SmolLM3Error, match="ask something first"):
        run_command(Session("m"), "/regenerate")
