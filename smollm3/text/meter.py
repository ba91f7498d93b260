"""Account of what a rendering template has used: steps, CPU time, depth and the size of every value it makes.

Limits go in, a `TemplateLimitError` comes out of the operation that would pass one. Every operation of the
sandbox is bounded by the size of its values, so checking between operations is enough: no thread, no signal.
Knows nothing of Jinja.
"""

import time
from collections.abc import ItemsView, KeysView, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

_STEPS_BETWEEN_CLOCK_READS = 16
_LARGE = 10_000
_ITEM_SIZE = 8
_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)


class TemplateLimitError(Exception):
    """A template that passes one of its limits; reaches the user as a TemplateError."""


@dataclass(frozen=True)
class Limits:
    """What one rendering may use. Sizes are characters plus 8 for each item and grow with the input."""

    seconds: float = 5.0
    """CPU seconds of the rendering thread."""
    steps: int = 1_000_000
    """Loop iterations, calls, filters and outputs."""
    depth: int = 64
    """Calls inside calls: macros, blocks, recursive loops."""
    nesting: int = 100
    """Containers inside containers."""
    value_size: int = 1_000_000
    """Any single value, and the rendered text; plus 4 times the input."""
    total_size: int = 64_000_000
    """All values made in one rendering together; plus 256 times the input."""
    source_size: int = 200_000
    """Characters of template source."""
    num_nodes: int = 30_000
    """Nodes of the parsed template."""


@dataclass(frozen=True)
class Weight:
    """The size of a value with everything in it counted as often as it is reached."""

    nodes: int
    chars: int
    depth: int

    @property
    def size(self) -> int:
        return _ITEM_SIZE * self.nodes + self.chars


def weigh(value: Any, *, max_size: int, max_depth: int) -> Weight:
    """Measure plain data without recursion; raise TemplateLimitError as soon as a maximum is passed."""
    nodes = chars = deepest = 0
    stack: list[tuple[Any, int]] = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        nodes += 1
        if isinstance(item, str):
            chars += len(item)
        elif isinstance(item, _CONTAINERS):
            depth += 1
            deepest = max(deepest, depth)
            if depth > max_depth:
                raise TemplateLimitError(f"values nest deeper than {max_depth} levels")
            if _ITEM_SIZE * (len(item) + nodes) > max_size:
                raise TemplateLimitError(f"a value is larger than {max_size} characters and items")
            if isinstance(item, dict):
                stack.extend((key, depth) for key in item)
                stack.extend((inner, depth) for inner in item.values())
            else:
                stack.extend((inner, depth) for inner in item)
        if _ITEM_SIZE * nodes + chars > max_size:
            raise TemplateLimitError(f"a value is larger than {max_size} characters and items")
    return Weight(nodes, chars, deepest)


@dataclass
class Meter:
    """What one rendering has used so far, and the moment it renders at."""

    limits: Limits
    input_size: int
    now: datetime
    steps: int = 0
    depth: int = 0
    made: int = 0
    emitted: int = 0
    rendered_size: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.max_value = self.limits.value_size + 4 * self.input_size
        self.max_total = self.limits.total_size + 256 * self.input_size
        self.max_emitted = 16 * self.max_value
        self.deadline = time.thread_time() + self.limits.seconds

    def tick(self) -> None:
        """Count one step; look at the clock now and then."""
        self.steps += 1
        if self.steps > self.limits.steps:
            raise TemplateLimitError(f"it takes more than {self.limits.steps} steps")
        if self.steps % _STEPS_BETWEEN_CLOCK_READS == 0:
            self.check_clock()

    def check_clock(self) -> None:
        if time.thread_time() > self.deadline:
            raise TemplateLimitError(f"it runs longer than {self.limits.seconds:g} seconds")

    def allow(self, size: int) -> None:
        """Refuse to make a value of `size` before it is made."""
        if size > self.max_value:
            raise TemplateLimitError(f"a value would grow past {self.max_value} characters and items")
        if size > _LARGE:
            self.check_clock()

    def weigh(self, value: Any) -> Weight:
        weight = weigh(value, max_size=self.max_value, max_depth=self.limits.nesting)
        if weight.nodes > _LARGE // 4:
            self.check_clock()
        return weight

    def size(self, value: Any) -> int:
        """The size of a value, quick for the scalars that most values are."""
        if isinstance(value, str):
            return len(value) + 1
        return self.weigh(value).size if isinstance(value, _CONTAINERS) else 1

    def admit(self, value: Any) -> Any:
        """Charge a value that an operation has just made, and hand it on."""
        size = self.size(value)
        self.allow(size)
        self.made += size
        if self.made > self.max_total:
            raise TemplateLimitError(f"its values take more than {self.max_total} characters together")
        return value

    def emit(self, num_chars: int) -> None:
        """Charge text that goes into the output or into a macro's or block's buffer."""
        self.tick()
        self.emitted += num_chars
        if self.emitted > self.max_emitted:
            raise TemplateLimitError(f"its output grows past {self.max_emitted} characters")


CURRENT: ContextVar[Meter] = ContextVar("meter of the template that is rendering")
