"""What is noted about an HTTP request while it is answered, for its line in the log.

Whoever works on the request finds its notes in the context of its task; elsewhere there are none.
"""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Notes:
    """Tokens of all work that a request asked for, and the error that ended it."""

    num_prompt: int = 0
    num_reused: int = 0
    num_generated: int = 0
    error: str | None = None


NOTES: ContextVar[Notes | None] = ContextVar("smollm3_notes", default=None)
