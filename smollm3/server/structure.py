"""The form that an answer must have (JSON, a schema, calls of tools, a budget of thoughts) as a constraint.

In: what a chat asks for, and how far thinking goes. Out: what the engine takes as a constraint. Faults of a
schema, a pattern or a grammar are RequestErrors that name the field.
"""

from typing import TYPE_CHECKING

from smollm3.engine.constraint import Constraint
from smollm3.server.chat_prompt import Thinking
from smollm3.server.errors import RequestError
from smollm3.server.service import Service

if TYPE_CHECKING:
    from smollm3.server.chat_work import Ask


def constraint_of(service: Service, ask: "Ask", thinking: Thinking) -> Constraint | None:
    """Return the constraint of an answer, or None if it is free."""
    if ask.format is not None and ask.format.type != "text":
        raise RequestError(f"{ask.format_field}: not supported: leave it out", param=ask.format_field)
    if ask.tool_choice not in (None, "auto", "none"):
        raise RequestError("tool_choice: not supported: leave it out", param="tool_choice")
    if not ask.parallel_calls and ask.callable_tools:
        raise RequestError("parallel_tool_calls: not supported: leave it out", param="parallel_tool_calls")
    if ask.thinking.budget is not None and thinking != "none":
        field = ask.thinking.budget_field
        raise RequestError(f"{field}: not supported: leave it out", param=field)
    return None
