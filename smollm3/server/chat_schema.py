"""The body of /v1/chat/completions: OpenAI's fields and this server's extensions, each checked.

Fields that OpenAI has and this server has not are here too, at the values that change nothing.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from smollm3.server.errors import RequestError
from smollm3.server.fields import Fields, only, refuse
from smollm3.server.sampling_fields import (
    MAX_INT,
    MAX_TOP_LOGPROBS,
    Label,
    MaxTokens,
    Metadata,
    NotSupported,
    OnlyFalse,
    SamplingFields,
)
from smollm3.server.structure_schema import ResponseFormat
from smollm3.server.tool_schema import Tool, ToolCallField, ToolChoice, check_tools, read_tool_choice

MAX_MESSAGES = 10_000
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _only_text(part: object) -> object:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind not in ("text", "refusal"):
        refuse(f"parts of type {kind!r} are not supported: the model reads text only", "type")
    return part


class TextPart(Fields):
    """A part of a message's content; `text` holds the words, whatever its kind."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        if getattr(self, self.type) is None:
            refuse("required: send it", self.type)
        other = "text" if self.type == "refusal" else "refusal"
        if getattr(self, other) is not None:
            refuse(f"a part of type {self.type} has none: leave it out", other)
        return self


Parts = Annotated[
    list[Annotated[TextPart, BeforeValidator(_only_text)]],
    Field(max_length=MAX_MESSAGES, fail_fast=True),
    BeforeValidator(_as_parts),
]

_FIELDS_OF_ROLE: dict[str, frozenset[str]] = {
    "system": frozenset({"content"}),
    "developer": frozenset({"content"}),
    "user": frozenset({"content"}),
    "assistant": frozenset({"content", "refusal", "reasoning_content", "reasoning", "tool_calls"}),
    "tool": frozenset({"content", "tool_call_id", "name"}),
    "function": frozenset({"content", "name"}),
}


class Message(Fields):
    """One message of any role; which other fields it has depends on it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Parts | None = None
    name: Label | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[ToolCallField], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: Label | None = None
    # What OpenAI's client sends back of an answer.
    audio: NotSupported = None
    function_call: NotSupported = None
    annotations: Annotated[object, AfterValidator(only(None, []))] = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        allowed = _FIELDS_OF_ROLE[self.role]
        for name in self.model_fields_set - {"role", "audio", "function_call", "annotations"} - allowed:
            if getattr(self, name) is not None:
                refuse(f"a message of the role {self.role} has no place for it: leave it out", name)
        if self.content is None and not (self.role == "assistant" and self.model_fields_set & {
            "tool_calls", "refusal", "content", "reasoning_content", "reasoning"
        }):  # fmt: skip
            refuse("required: send it", "content")
        if self.role == "tool" and self.tool_call_id is None:
            refuse("required: send it", "tool_call_id")
        return self


class TemplateOptions(Fields):
    """What may be passed to the chat template; every other name is refused."""

    enable_thinking: bool | None = None


class ChatRequest(SamplingFields):
    """The request. Not OpenAI's: enable_thinking, thinking_budget, chat_template_kwargs, top_k, min_p,
    repetition_penalty, continue_final_message, add_generation_prompt, prompt_lookup, cache_salt, and in
    messages reasoning_content."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Annotated[ToolChoice, BeforeValidator(read_tool_choice)] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    prompt_lookup: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    # Said about the request, not asked of the model.
    metadata: Metadata | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    # OpenAI's that this server has not.
    store: OnlyFalse = None
    service_tier: Annotated[object, AfterValidator(only(None, "auto", "default"))] = None
    modalities: Annotated[object, AfterValidator(only(None, ["text"]))] = None
    verbosity: Annotated[object, AfterValidator(only(None, "medium"))] = None
    audio: NotSupported = None
    function_call: NotSupported = None
    functions: NotSupported = None
    moderation: NotSupported = None
    prediction: NotSupported = None
    prompt_cache_options: NotSupported = None
    prompt_cache_retention: Annotated[object, AfterValidator(only(None, "in_memory"))] = None
    web_search_options: NotSupported = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            refuse("goes with logprobs=true alone", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens):
            refuse("exclude each other: send one of max_tokens and max_completion_tokens", "max_tokens")
        if self.continue_final_message and self.add_generation_prompt:
            refuse("excludes continue_final_message: send one of them", "add_generation_prompt")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            refuse("needs a last message of the role assistant", "continue_final_message")
        check_tools(self.tools, self.tool_choice)
        return self

    @property
    def thinking(self) -> bool | None:
        """Whether to think: True, False, or None for the chat template's own choice."""
        kwargs = self.chat_template_kwargs
        asked = {
            "enable_thinking": self.enable_thinking,
            "chat_template_kwargs.enable_thinking": kwargs.enable_thinking if kwargs else None,
            "reasoning_effort": None if self.reasoning_effort is None else self.reasoning_effort != "none",
        }
        return agreed_thinking(asked, self.thinking_budget)


def agreed_thinking(asked: dict[str, bool | None], budget: int | None) -> bool | None:
    """Return what all the fields that say something about thinking say; they may not differ."""
    given = {name: value for name, value in asked.items() if value is not None}
    if len(set(given.values())) > 1:
        first, *others = given
        second = next(name for name in others if given[name] != given[first])
        raise RequestError(f"{second}: says otherwise than {first}: send one of them", param=second)
    thinking = next(iter(given.values()), None)
    if budget and thinking is False:
        raise RequestError("thinking_budget: goes with thinking alone: leave it out", param="thinking_budget")
    return thinking


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Return messages as `text.messages` reads them."""
    plain = []
    for message in messages:
        fields = message.model_dump(exclude_none=True, exclude={"annotations"})
        if message.content is not None:
            fields["content"] = "".join(part.text or part.refusal or "" for part in message.content)
        plain.append(fields)
    return plain
