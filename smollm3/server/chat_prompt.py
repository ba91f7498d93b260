"""A chat request's messages and tools in, the prompt and how far thinking goes out.

Every fault of the messages is a RequestError that names the field. Knows no streaming.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from smollm3.errors import ContextOverflowError, ParameterError, PromptError, TemplateError
from smollm3.server.errors import RequestError
from smollm3.text.chat_template import reads_variable
from smollm3.text.prompt import Prompt, build_prompt
from smollm3.text.tokenizer import Tokenizer

Thinking = Literal["none", "open", "optional"]
_PLACE = re.compile(r"^messages\[\d+\](?:\.\w+(?:\[\d+\])?)*")


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt's ids, and whether the answer begins in thoughts, may open them, or has none."""

    ids: list[int]
    thinking: Thinking


def can_think(tokenizer: Tokenizer) -> bool:
    """Whether the chat template has a thinking mode."""
    return tokenizer.chat_template is not None and reads_variable(tokenizer.chat_template, "enable_thinking")


def can_call(tokenizer: Tokenizer) -> bool:
    """Whether the chat template has a place for tools."""
    source = tokenizer.chat_templates.get("tool_use") or tokenizer.chat_template
    return source is not None and reads_variable(source, "tools")


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    *,
    tools: Sequence[dict[str, Any]] = (),
    enable_thinking: bool | None = None,
    continue_final_message: bool = False,
    add_generation_prompt: bool = True,
    field: str = "messages",
) -> ChatPrompt:
    """Render and encode a chat; `field` is what the request calls its messages. Raises RequestError."""
    if tools and not can_call(tokenizer):
        raise RequestError(
            "tools: this model's chat template has no place for tools: use a model that calls them, such as "
            "SmolLM3, or leave tools out",
            param="tools",
        )
    thinks = can_think(tokenizer)
    if enable_thinking and not thinks:
        raise RequestError(
            "enable_thinking: this model's chat template has no thinking mode: leave it out",
            param="enable_thinking",
        )
    with blamed_on(field):
        prompt = build_prompt(
            tokenizer,
            messages,
            tools=list(tools) or None,
            enable_thinking=enable_thinking if thinks else None,
            continue_final_message=continue_final_message,
            add_generation_prompt=add_generation_prompt,
        )
    begun = continue_final_message and bool((messages[-1].get("content") or "").strip())
    return ChatPrompt(prompt.ids, _thinking(prompt, may_think=thinks and not begun))


def _thinking(prompt: Prompt, *, may_think: bool) -> Thinking:
    if prompt.thinking_open:
        return "open"
    closed = prompt.text.rstrip().endswith("</think>")
    return "optional" if may_think and not closed else "none"


@contextmanager
def blamed_on(field: str) -> Iterator[None]:
    """Turn what the text layer refuses into a RequestError whose `param` is `field`, or the place in it."""
    try:
        yield
    except ContextOverflowError as error:
        raise RequestError(str(error), param=field, code="context_length_exceeded") from None
    except (PromptError, TemplateError, ParameterError) as error:
        place = _PLACE.match(str(error)) if field == "messages" else None
        raise RequestError(str(error), param=place.group() if place else field) from None


def new_tokens(
    asked: int | None,
    *,
    num_prompt: int,
    num_choices: int,
    context_size: int,
    prompt_field: str,
    tokens_field: str,
) -> int:
    """Return how many tokens an answer may have: what was asked for, or what the context leaves.

    All choices of a request share the context's size as their budget. Raises RequestError.
    """
    if num_prompt + (asked != 0) > context_size:
        raise RequestError(
            f"{prompt_field}: the prompt has {num_prompt} tokens and the context {context_size}: shorten it",
            param=prompt_field,
            code="context_length_exceeded",
        )
    if asked is not None and num_prompt + asked > context_size:
        raise RequestError(
            f"{tokens_field}: a prompt of {num_prompt} tokens and {asked} of answer are "
            f"{num_prompt + asked}, over the context of {context_size}: shorten one of the two",
            param=tokens_field,
            code="context_length_exceeded",
        )
    if asked is None:
        return max(1, min(context_size - num_prompt, context_size // num_choices))
    if asked * num_choices > context_size:
        raise RequestError(
            f"n: {num_choices} answers of {tokens_field}={asked} are {asked * num_choices} tokens, over the "
            f"budget of {context_size}: lower one of the two",
            param="n",
        )
    return asked
