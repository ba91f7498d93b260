"""The chat's slash commands: a line in, a changed session and a reply out.

Knows neither model nor terminal. A command that fails raises a SmolLM3Error and leaves the session as it was.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from smollm3.cli.conversation import Conversation
from smollm3.cli.settings import HELP, NAMES, Settings
from smollm3.errors import ParameterError

Action = Literal["none", "regenerate", "exit"]


@dataclass(frozen=True)
class Reply:
    """What the person reads, and what the chat does next."""

    text: str = ""
    action: Action = "none"


@dataclass
class Session:
    """A chat as it stands: the messages, the settings and the model's name."""

    model: str
    settings: Settings = field(default_factory=Settings)
    conversation: Conversation = field(default_factory=Conversation)
    can_think: bool = True

    def change(self, settings: Settings) -> None:
        """Take over `settings`. Raises ParameterError when the model cannot do what they ask."""
        if settings.thinking and not self.can_think:
            raise ParameterError("this model's chat template has no thinking mode: it answers at once")
        self.settings = settings


@dataclass(frozen=True)
class Command:
    usage: str
    help: str
    run: Callable[[Session, str], Reply]


def is_command(line: str) -> bool:
    """Whether a line is a command; `//text` is the message `/text`, and so is a message of several lines."""
    return line.startswith("/") and not line.startswith("//") and "\n" not in line


def message_of(line: str) -> str:
    """Return the message that a line which is no command sends."""
    return line[1:] if line.startswith("//") else line


def run_command(session: Session, line: str) -> Reply:
    """Run a command line such as `/set top_k 20`. Raises SmolLM3Error with the way out."""
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        raise ParameterError(
            f"there is no command {name}: /help lists them, //{name[1:]} sends it as a message"
        )
    if "[" not in command.usage and " " not in command.usage and argument.strip():
        raise ParameterError(f"{name} takes nothing after it: {command.help}")
    return command.run(session, argument.strip())


def _help(session: Session, _: str) -> Reply:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    keys = [
        "",
        "A line that ends in \\ goes on in the next one; Alt-Enter begins a new line,",
        'and """ begins and ends a block of lines. Ctrl-C stops an answer, Ctrl-D',
        "leaves. //text sends a message that begins with a slash.",
    ]
    return Reply("\n".join(lines + keys))


def _set(session: Session, argument: str) -> Reply:
    if not argument:
        width = max(map(len, NAMES))
        lines = [f"{name:<{width}}  {session.settings.shown(name):<9} {HELP[name]}" for name in NAMES]
        return Reply("\n".join([*lines, "", "/set NAME VALUE changes one, /set NAME default takes it back"]))
    name, _, text = argument.partition(" ")
    if not text:
        name, _, text = argument.partition("=")
    if not text.strip():
        name = name.replace("-", "_")
        if name not in NAMES:
            raise ParameterError(f"there is no setting {name!r}: choose from {', '.join(NAMES)}")
        return Reply(f"{name}: {session.settings.shown(name)} ({HELP[name]})")
    session.change(session.settings.with_text(name, text))
    name = name.replace("-", "_")
    return Reply(f"{name}: {session.settings.shown(name)}")


def _show(session: Session, _: str) -> Reply:
    conversation, settings = session.conversation, session.settings
    changed = [
        f"{name} {settings.shown(name)}"
        for name in NAMES
        if settings != Settings() and _differs(settings, name)
    ]
    asked = sum(message["role"] == "user" for message in conversation.messages)
    lines = [
        f"model     {session.model}",
        f"system    {conversation.system or 'none'}",
        f"messages  {len(conversation.messages)} ({asked} from you)",
        f"settings  {', '.join(changed) or 'all default'} (/set lists them)",
    ]
    if conversation.path:
        lines.append(f"file      {conversation.path}")
    if conversation.unanswered:
        lines.append("open      your last message has no answer: /regenerate asks again")
    return Reply("\n".join(lines))


def _differs(settings: Settings, name: str) -> bool:
    return bool(getattr(settings, name) != getattr(Settings(), name))


def _system(session: Session, argument: str) -> Reply:
    if not argument:
        return Reply(f"system: {session.conversation.system or 'none'}")
    if argument.lower() == "none":
        session.conversation.set_system(None)
        return Reply("system prompt removed")
    session.conversation.set_system(argument)
    return Reply("system prompt set; it holds from the next answer on")


def _think(session: Session, _: str) -> Reply:
    session.change(dataclasses.replace(session.settings, thinking=True))
    return Reply("thinking: on")


def _no_think(session: Session, _: str) -> Reply:
    session.change(dataclasses.replace(session.settings, thinking=False))
    return Reply("thinking: off")


def _save(session: Session, argument: str) -> Reply:
    force = argument.startswith("--force")
    name = argument.removeprefix("--force").strip()
    path = session.conversation.save(Path(name) if name else None, model=session.model, overwrite=force)
    return Reply(f"saved {len(session.conversation.messages)} messages to {path}")


def _load(session: Session, argument: str) -> Reply:
    if not argument:
        raise ParameterError("/load needs a file: /load FILE")
    count = session.conversation.load(Path(argument))
    return Reply(f"loaded {count} messages from {argument}")


def _clear(session: Session, _: str) -> Reply:
    session.conversation.clear()
    kept = "; the system prompt stays" if session.conversation.system else ""
    return Reply(f"started over{kept}")


def _regenerate(session: Session, _: str) -> Reply:
    session.conversation.to_repeat()
    return Reply(action="regenerate")


def _exit(session: Session, _: str) -> Reply:
    return Reply(action="exit")


COMMANDS: dict[str, Command] = {
    "/help": Command("/help", "this list", _help),
    "/set": Command("/set [NAME VALUE]", "change a setting; alone: list them", _set),
    "/show": Command("/show", "model, system prompt, messages, changed settings", _show),
    "/system": Command("/system [TEXT]", "set the system prompt ('none' removes it), or show it", _system),
    "/think": Command("/think", "think before answering (models with a thinking mode)", _think),
    "/no_think": Command("/no_think", "answer at once", _no_think),
    "/save": Command("/save [--force] FILE", "write the chat as JSON (without FILE: where it was)", _save),
    "/load": Command("/load FILE", "go on with a saved chat in place of this one", _load),
    "/clear": Command("/clear", "forget the messages, keep the system prompt", _clear),
    "/regenerate": Command("/regenerate", "answer the last message again", _regenerate),
    "/exit": Command("/exit", "leave (so does Ctrl-D)", _exit),
}
