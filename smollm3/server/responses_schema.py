"""The body of /v1/responses: OpenAI's fields and this server's extensions, each checked."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from smollm3.server.chat_schema import Effort
from smollm3.server.fields import Fields, only, refuse
from smollm3.server.responses_items import Items
from smollm3.server.sampling_fields import (
    MAX_INT,
    MAX_TOP_LOGPROBS,
    DrawFields,
    Label,
    MaxTokens,
    Metadata,
    NotSupported,
    OnlyFalse,
)
from smollm3.server.structure_schema import Name, ResponseFormat
from smollm3.server.tool_schema import FunctionName, Tool, ToolChoice, check_tools, read_tool_choice

_LOGPROBS = "message.output_text.logprobs"


class FlatTool(Fields):
    """A function that the model may call, as responses spell it."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def nested(self) -> Tool:
        """Return the tool as chat completions spell it."""
        function = self.model_dump(exclude_unset=True, exclude={"type"})
        return Tool.model_validate({"type": "function", "function": function})


class Reasoning(Fields):
    """How much to think."""

    effort: Effort | None = None
    summary: NotSupported = None
    generate_summary: NotSupported = None


class FlatFormat(Fields):
    """text.format: the form of the answer, as responses spell it."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    name: Name | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None
    pattern: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    syntax: Literal["lark"] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        wanted = {"json_schema": ("name", "schema_"), "regex": ("pattern",), "grammar": ("syntax", "grammar")}
        for name in ("name", "schema_", "description", "strict", "pattern", "syntax", "grammar"):
            given = getattr(self, name) is not None
            if name in wanted.get(self.type, ()) and not given:
                refuse("required: send it", name.rstrip("_"))
            optional = self.type == "json_schema" and name in ("description", "strict")
            if given and name not in wanted.get(self.type, ()) and not optional:
                refuse(f"a format of type {self.type} has none: leave it out", name.rstrip("_"))
        return self

    def nested(self) -> ResponseFormat:
        """Return the format as chat completions spell it."""
        fields = self.model_dump(exclude_none=True, by_alias=True)
        if self.type == "json_schema":
            fields = {"type": fields.pop("type"), "json_schema": fields}
        return ResponseFormat.model_validate(fields)


class TextOptions(Fields):
    """What the text of the answer is like."""

    format: FlatFormat | None = None
    verbosity: Annotated[object, AfterValidator(only(None, "medium"))] = None


class ResponseStreamOptions(Fields):
    """What a stream brings besides the answer: nothing that this server has."""

    include_obfuscation: OnlyFalse = None


class ResponsesRequest(DrawFields):
    """The request. Not OpenAI's: seed, top_k, min_p, penalties, logit_bias, thinking_budget, enable_thinking,
    prompt_lookup, cache_salt."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: Items
    instructions: str | None = None
    previous_response_id: Label | None = None
    max_output_tokens: MaxTokens | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FlatTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Annotated[ToolChoice, BeforeValidator(read_tool_choice)] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=8)] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    prompt_lookup: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    # Said about the request, not asked of the model.
    metadata: Metadata | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    # OpenAI's that this server has not.
    background: OnlyFalse = None
    service_tier: Annotated[object, AfterValidator(only(None, "auto", "default"))] = None
    truncation: Annotated[object, AfterValidator(only(None, "disabled"))] = None
    conversation: NotSupported = None
    prompt: NotSupported = None
    max_tool_calls: NotSupported = None
    moderation: NotSupported = None
    context_management: NotSupported = None
    prompt_cache_options: NotSupported = None
    prompt_cache_retention: Annotated[object, AfterValidator(only(None, "in_memory"))] = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.stream_options is not None and not self.stream:
            refuse("goes with stream=true alone: leave it out", "stream_options")
        nested = self.nested_tools
        check_tools(nested, self.tool_choice, name_field="name")
        return self

    @property
    def nested_tools(self) -> list[Tool]:
        """The tools as chat completions spell them."""
        return [tool.nested() for tool in self.tools or ()]

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens to tell of at each place; None is no log-probabilities at all."""
        if self.top_logprobs is None and _LOGPROBS not in (self.include or ()):
            return None
        return self.top_logprobs or 0
