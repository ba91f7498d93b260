"""What a chat asks for, in one form for every endpoint that chats, and the Work that it comes to.

Renders the prompt, counts tokens and compiles the constraint: seconds at worst, so it runs in a thread.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smollm3.server.chat_prompt import can_think, chat_prompt, new_tokens
from smollm3.server.context import Context
from smollm3.server.errors import RequestError
from smollm3.server.sampling_fields import DrawFields, sampling_params
from smollm3.server.service import Service
from smollm3.server.structure import constraint_of
from smollm3.server.structure_schema import ResponseFormat
from smollm3.server.tool_schema import Tool, ToolChoice
from smollm3.server.work import ParseOptions, Work

# How many tokens of thoughts an effort allows; None is no limit.
EFFORTS: dict[str, int | None] = {
    "minimal": 128, "low": 512, "medium": 2048, "high": None, "xhigh": None, "max": None,
}  # fmt: skip


@dataclass(frozen=True)
class Thinking:
    """Whether to think (None: as the chat template does), for how many tokens, and which field says so."""

    enabled: bool | None = None
    budget: int | None = None
    field: str = "enable_thinking"
    budget_field: str = "thinking_budget"


@dataclass(frozen=True)
class Ask:
    """A chat request without OpenAI's words but the names of its fields, which errors need."""

    messages: Sequence[dict[str, Any]]
    draw: DrawFields
    thinking: Thinking = Thinking()
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice | None = None
    parallel_calls: bool = True
    format: ResponseFormat | None = None
    max_tokens: int | None = None
    num_choices: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    prompt_lookup: bool | None = None
    salt: str = ""
    messages_field: str = "messages"
    tokens_field: str = "max_tokens"
    format_field: str = "response_format"
    function_field: str = ".function"

    @property
    def callable_tools(self) -> Sequence[Tool]:
        """The tools that the model is told of: none if it may not call any."""
        return () if self.tool_choice == "none" else self.tools


async def work_of(context: Context, ask: Ask) -> Work:
    """Return the work behind a chat request. Raises RequestError."""
    return await asyncio.to_thread(_work, context, ask)


def _work(context: Context, ask: Ask) -> Work:
    service = context.service
    _check_thinking(service, ask.thinking)
    tools = ask.callable_tools
    prompt = chat_prompt(
        service.tokenizer,
        ask.messages,
        tools=[tool.model_dump(exclude_unset=True) for tool in tools],
        enable_thinking=ask.thinking.enabled,
        continue_final_message=ask.continue_final_message,
        add_generation_prompt=ask.add_generation_prompt,
        field=ask.messages_field,
    )
    max_new_tokens = new_tokens(
        ask.max_tokens,
        num_prompt=len(prompt.ids),
        num_choices=ask.num_choices,
        context_size=service.context_size,
        prompt_field=ask.messages_field,
        tokens_field=ask.tokens_field,
    )
    params = sampling_params(
        ask.draw,
        service.defaults,
        max_new_tokens=max_new_tokens,
        eos_token_ids=service.defaults.eos_ids,
        vocab_size=service.vocab_size,
        logprobs=ask.top_logprobs,
        constraint=constraint_of(service, ask, prompt.thinking),
        prompt_lookup=service.prompt_lookup if ask.prompt_lookup is None else ask.prompt_lookup,
    )
    return Work(
        prompt.ids,
        params,
        num_choices=ask.num_choices,
        stop=ask.stop or tuple(service.defaults.stop_list),
        parse=ParseOptions(thinking_open=prompt.thinking == "open", tool_calls=bool(tools)),
        salt=ask.salt,
    )


def _check_thinking(service: Service, thinking: Thinking) -> None:
    """Refuse what a model without a thinking mode cannot do."""
    if can_think(service.tokenizer):
        return
    asked = {thinking.field: thinking.enabled or None, thinking.budget_field: thinking.budget}
    for name, value in asked.items():
        if value is not None:
            raise RequestError(
                f"{name}: this model's chat template has no thinking mode: leave it out", param=name
            )
