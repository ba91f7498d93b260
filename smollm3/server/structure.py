"""The form that an answer must have (JSON, a schema, calls of tools, a budget of thoughts) as a constraint.

In: what a chat asks for, and how far thinking goes. Out: what the engine takes as a constraint. Faults of a
schema, a pattern or a grammar are RequestErrors that name the field.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from smollm3.engine.constraint import Constraint
from smollm3.errors import ParameterError
from smollm3.server.chat_prompt import Thinking
from smollm3.server.errors import RequestError
from smollm3.server.service import Service
from smollm3.server.structure_schema import ResponseFormat
from smollm3.server.tool_schema import NamedChoice, Tool
from smollm3.text.grammar import Grammar, GrammarCompiler
from smollm3.text.thinking_budget import ThinkingBudget

if TYPE_CHECKING:
    from smollm3.server.chat_work import Ask

_WAY_OUT = "; strict=false asks for any object instead"
_TOOL = re.compile(r"^tools\[(\d+)\](\.parameters)?")


def constraint_of(service: Service, ask: "Ask", thinking: Thinking) -> Constraint | None:
    """Return the constraint of an answer, or None if it is free. Raises RequestError."""
    grammar = _grammar(service, ask, thinking)
    budget = ask.thinking.budget
    if budget is None or thinking == "none":
        return grammar
    return ThinkingBudget(service.tokenizer, budget, thinking == "open", grammar)


def _grammar(service: Service, ask: "Ask", thinking: Thinking) -> Grammar | None:
    tools = list(ask.callable_tools)
    with _blamed(ask):
        if isinstance(ask.tool_choice, NamedChoice):
            named = [tool for tool in tools if tool.function.name == ask.tool_choice.name]
            return service.grammar.tool_calls(_declared(named), "required", False, thinking=thinking)
        if not tools:
            return _of_form(service.grammar, ask, thinking) if _has_form(ask) else None
        if ask.tool_choice != "required" and _has_form(ask):
            return _of_tools_or_form(service.grammar, ask, _declared(tools), thinking)
        choice = "required" if ask.tool_choice == "required" else "auto"
        return service.grammar.tool_calls(_declared(tools), choice, ask.parallel_calls, thinking=thinking)


def _has_form(ask: "Ask") -> bool:
    return ask.format is not None and ask.format.type != "text"


def _of_form(compiler: GrammarCompiler, ask: "Ask", thinking: Thinking) -> Grammar:
    form = ask.format
    assert form is not None
    if form.type == "regex":
        return compiler.regex(form.pattern or "", thinking=thinking)
    if form.type == "grammar":
        return compiler.lark(form.grammar or "", thinking=thinking)
    return compiler.json_schema(_schema(form), thinking=thinking)


def _of_tools_or_form(
    compiler: GrammarCompiler, ask: "Ask", tools: Sequence[Any], thinking: Thinking
) -> Grammar:
    form, parallel = ask.format, ask.parallel_calls
    assert form is not None
    if form.type == "regex":
        return compiler.tool_calls_or_regex(tools, form.pattern or "", parallel, thinking=thinking)
    if form.type == "grammar":
        return compiler.tool_calls_or_lark(tools, form.grammar or "", parallel, thinking=thinking)
    return compiler.tool_calls_or_json(tools, _schema(form), parallel, thinking=thinking)


def _schema(form: ResponseFormat) -> Mapping[str, Any]:
    return {"type": "object"} if form.json_schema is None else form.json_schema.schema_


def _declared(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return tools as the grammar reads them; strict=false asks for no more than an object."""
    declared = []
    for tool in tools:
        function = tool.function
        parameters = {"type": "object"} if function.strict is False else function.parameters
        declared.append({"name": function.name, "parameters": parameters})
    return declared


@contextmanager
def _blamed(ask: "Ask") -> Iterator[None]:
    """Name the field that a grammar's fault comes from."""
    try:
        yield
    except ParameterError as error:
        message = str(error)
        tool = _TOOL.match(message)
        if tool is not None:
            place = f"tools[{tool.group(1)}]{ask.function_field}.parameters"
            raise RequestError(place + message[tool.end() :] + _WAY_OUT, param=place) from None
        if message.startswith("tool") or not _has_form(ask):
            raise RequestError(message, param="tools") from None
        raise RequestError(f"{ask.format_field}: {message}", param=ask.format_field) from None
