"""One prompt, one answer: for the shell and for scripts.

In: the argument, what is piped in, or both. Out: the answer on stdout (as text, or one JSON object), notes
and thoughts on stderr.
"""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from smollm3.cli.conversation import Message
from smollm3.cli.interrupts import Interrupts
from smollm3.cli.options import LoadOptions
from smollm3.cli.settings import Settings
from smollm3.cli.terminal import is_terminal, one_line
from smollm3.cli.view import PlainView
from smollm3.errors import ParameterError, PromptError

if TYPE_CHECKING:
    from smollm3.cli.answer import Answer, AnswerStream
    from smollm3.cli.loading import Loaded


def join_prompt(argument: str | None, piped: str | None) -> str:
    """Join what was piped in and the argument, with a blank line between. Raises PromptError for nothing."""
    parts = [part for part in (piped and piped.rstrip("\n"), argument) if part and part.strip()]
    if not parts:
        raise PromptError("there is no prompt: give one as an argument, pipe one in, or do both")
    return "\n\n".join(parts)


def read_piped() -> str | None:
    """Return what is piped into stdin, None where a person sits there."""
    if sys.stdin is None or is_terminal(sys.stdin):
        return None
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"the input is not UTF-8 text (byte {error.start}): convert it first") from None


def run_generate(
    argument: str | None,
    options: LoadOptions,
    settings: Settings,
    *,
    template: str | None,
    system: str | None,
    raw: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Answer the prompt on stdout."""
    if raw and (system is not None or template is not None):
        raise ParameterError(
            f"--raw renders no chat: leave --{'template' if system is None else 'system'} out"
        )
    text = join_prompt(argument, read_piped())
    from smollm3.cli.answer import AnswerStream, chat_prompt, raw_prompt, read_template
    from smollm3.cli.loading import load

    source = read_template(template)
    began = time.perf_counter()
    loaded = load(options)
    load_s = time.perf_counter() - began
    raw = raw or _has_no_template(loaded, source, system)
    if raw:
        prompt = raw_prompt(loaded, text)
    else:
        messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        prompt = chat_prompt(loaded, [*messages, {"role": "user", "content": text}], settings, source)
    answer = _answer(AnswerStream(loaded, prompt, settings, parse=not raw), settings, quiet=as_json)
    if as_json:
        print(json.dumps(as_record(answer, loaded.name, load_s), ensure_ascii=False))
    if verbose:
        print(speed(answer, load_s), file=sys.stderr)
    if answer.finish_reason == "length" and settings.max_new_tokens is None and not as_json:
        print(
            f"note: cut off at {answer.num_generated} tokens: --max-new-tokens allows more", file=sys.stderr
        )


def _has_no_template(loaded: "Loaded", source: str | None, system: str | None) -> bool:
    """Whether the prompt must be continued raw, because nothing says how a chat looks; says so."""
    if source is not None or loaded.tokenizer.chat_template is not None:
        return False
    if system is not None:
        raise ParameterError(
            f"{one_line(loaded.name)} has no chat template, so --system has no place: pass --template"
        )
    print(
        f"note: {one_line(loaded.name)} has no chat template: the prompt is continued as it is",
        file=sys.stderr,
    )
    return True


def _answer(stream: "AnswerStream", settings: Settings, *, quiet: bool) -> "Answer":
    shows_aside = settings.show_thinking and is_terminal(sys.stderr)
    view = PlainView(sys.stdout, aside=sys.stderr if shows_aside else None, escape=is_terminal(sys.stdout))
    with Interrupts().active() as interrupts:
        try:
            for delta in stream:
                with interrupts.shielded():
                    if not quiet:
                        view.push(delta)
        finally:
            if not quiet:
                view.finish()
    return stream.answer


def as_record(answer: "Answer", model: str, load_s: float) -> dict[str, Any]:
    """Return the answer as the JSON object of `--json`."""
    speed_ = answer.tokens_per_second
    return {
        "model": model,
        "text": answer.content,
        "reasoning": answer.reasoning or None,
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls],
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": answer.num_prompt,
            "completion_tokens": answer.num_generated,
            "total_tokens": answer.num_prompt + answer.num_generated,
        },
        "timings": {
            "load_s": round(load_s, 4),
            "first_token_s": None if answer.first_token_s is None else round(answer.first_token_s, 4),
            "total_s": round(answer.total_s, 4),
            "tokens_per_second": None if speed_ is None else round(speed_, 2),
        },
    }


def speed(answer: "Answer", load_s: float) -> str:
    """Return the line of `-v`."""
    first = "none" if answer.first_token_s is None else f"{answer.first_token_s:.2f} s"
    rate = answer.tokens_per_second
    pace = "" if rate is None else f", {rate:.1f} tok/s"
    return (
        f"loaded in {load_s:.2f} s, {answer.num_prompt} prompt tokens, first token after {first}, "
        f"{answer.num_generated} tokens{pace}"
    )
