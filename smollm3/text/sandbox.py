"""The one sandbox in which any chat template runs: source and plain data go in, text comes out.

It speaks transformers' dialect (trimmed blocks, loop controls, `tojson`, `strftime_now`, `raise_exception`,
`{% generation %}`) and nothing of the template reaches Python: attributes and callables are allow-listed, no
value and no loop can outgrow the meter. Whatever goes wrong is a TemplateError of one line.
"""

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols as LoopControls
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, pass_context

from smollm3.errors import TemplateError
from smollm3.text.meter import CURRENT, Limits, Meter, TemplateLimitError, weigh
from smollm3.text.sandbox_code import Dict, Generation, MeteredCode, MeteredIterable, Namespace
from smollm3.text.sandbox_filters import FILTERS_OFFERED, MeteredFormatter, allow_method, binary
from smollm3.text.template_date import strftime

DEFAULT_LIMITS = Limits()


class RefusalError(Exception):
    """The template's own `raise_exception(message)`."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment itself; `sandbox()` is its only constructor."""

    code_generator_class = MeteredCode
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Nothing is computed at compile time: constants would be folded outside the meter.
            optimized=False,
            finalize=_emit_value,
            extensions=[Generation, LoopControls],
        )
        self.filters = dict(FILTERS_OFFERED)
        self.globals: dict[str, Any] = {
            "range": safe_range,
            "dict": Dict(),
            "namespace": Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._functions: tuple[Any, ...] = (
            safe_range,
            Namespace,
            Cycler,
            Joiner,
            _raise_exception,
            _strftime_now,
        )

    def metered(self, items: Any) -> MeteredIterable:
        return MeteredIterable(items)

    def emit(self, num_chars: int) -> None:
        CURRENT.get().emit(num_chars)

    def admit(self, value: Any) -> Any:
        return CURRENT.get().admit(value)

    def concatenate(self, join: Callable[[Any], str], parts: tuple[Any, ...]) -> Any:
        meter = CURRENT.get()
        meter.tick()
        meter.allow(sum(meter.size(part) for part in parts))
        return meter.admit(join(parts))

    def slice(self, items: Any, start: Any, stop: Any, step: Any) -> Any:
        CURRENT.get().tick()
        part = items[start:stop:step]
        CURRENT.get().made += len(part) if isinstance(part, str | list | tuple) else 0
        return CURRENT.get().admit(part) if isinstance(part, str) else part

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return binary(operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        return _Format(self, value.__self__, mapping=value.__name__ == "format_map")

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        meter = CURRENT.get()
        meter.tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, types.BuiltinMethodType | types.MethodType) and isinstance(owner, _PLAIN_DATA):
            allow_method(__obj.__name__, owner, args)
        elif not __self._is_offered(__obj, owner):
            raise SecurityError(f"{type(__obj).__name__} is not offered to templates as a function")
        meter.weigh(args)
        meter.depth += 1
        try:
            if meter.depth > meter.limits.depth:
                raise TemplateLimitError(f"it calls deeper than {meter.limits.depth} levels")
            return meter.admit(super().call(__context, __obj, *args, **kwargs))
        finally:
            meter.depth -= 1

    def _is_offered(self, function: Any, owner: Any) -> bool:
        if isinstance(function, types.MethodType):
            return isinstance(owner, (*_OBJECTS, Generation, _Sandbox))
        # An undefined name is let through to jinja, whose message names it.
        return isinstance(function, (*_OBJECTS, jinja2.Undefined)) or any(
            function is offered for offered in self._functions
        )


_PLAIN_DATA = (str, bool, int, float, dict, list, tuple)


class _Format:
    """`text.format(...)`, bound to its text and metered."""

    def __init__(self, environment: _Sandbox, pattern: str, *, mapping: bool) -> None:
        self._environment, self._pattern, self._mapping = environment, pattern, mapping

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if self._mapping:
            (kwargs,), args = args, ()
        return MeteredFormatter(self._environment).vformat(str(self._pattern), args, kwargs)


_OBJECTS = (Macro, LoopContext, BlockReference, Cycler, Joiner, Dict, _Format)


@pass_context
def _emit_value(context: Context, value: Any) -> Any:
    meter = CURRENT.get()
    meter.emit(meter.size(value))
    return value


def _raise_exception(message: Any) -> None:
    raise RefusalError(str(message))


def _strftime_now(pattern: str) -> str:
    return strftime(CURRENT.get().now, pattern)


@lru_cache(maxsize=1)
def sandbox() -> _Sandbox:
    """The one environment; it holds no state of a rendering, so every thread shares it."""
    return _Sandbox()


@dataclass(frozen=True)
class Rendered:
    """A rendered text, and the (start, end) characters that `{% generation %}` marks as the assistant's."""

    text: str
    generation_spans: tuple[tuple[int, int], ...]


@contextmanager
def _template_errors() -> Iterator[None]:
    """Whatever a template does wrong, in Python's words or Jinja's, becomes one line."""
    try:
        yield
    except TemplateError:
        raise
    except RefusalError as error:
        raise TemplateError(f"the chat template refuses these messages: {_one_line(error)}") from None
    except TemplateLimitError as error:
        raise TemplateError(f"the chat template is stopped: {_one_line(error)}") from None
    except RecursionError:
        raise TemplateError("the chat template is stopped: it recurses too deep") from None
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"the chat template has an error in line {error.lineno}: {_one_line(error)}"
        ) from None
    except Exception as error:
        raise TemplateError(f"the chat template fails: {type(error).__name__}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error)[:1000].split())[:300]


@lru_cache(maxsize=32)
def _compiled(source: str, limits: Limits) -> tuple[jinja2.Template, frozenset[str]]:
    if len(source) > limits.source_size:
        raise TemplateLimitError(f"its source is longer than {limits.source_size} characters")
    environment = sandbox()
    tree = environment.parse(source)
    if sum(1 for _ in tree.find_all(nodes.Node)) > limits.num_nodes:
        raise TemplateLimitError(f"it has more than {limits.num_nodes} nodes")
    # Names are collected first: compiling rewrites the tree.
    names = frozenset(find_undeclared_variables(tree))
    return environment.from_string(tree), names


def template_variables(source: str, limits: Limits = DEFAULT_LIMITS) -> frozenset[str]:
    """The names a template reads from outside, such as `enable_thinking`."""
    with _template_errors():
        return _compiled(source, limits)[1] - frozenset(sandbox().globals)


def render_source(
    source: str, variables: Mapping[str, Any], *, now: datetime, limits: Limits = DEFAULT_LIMITS
) -> Rendered:
    """Render a template over plain data: None, bool, int, float, str, list, tuple, dict.

    Raises TemplateError. `now` is the moment that `strftime_now` prints.
    """
    with _template_errors():
        template, _ = _compiled(source, limits)
        # The input may be as large as memory allows; only its nesting is limited.
        size = weigh(dict(variables), max_size=sys.maxsize, max_depth=limits.nesting).size
        meter = Meter(limits, size, now)
        token = CURRENT.set(meter)
        try:
            chunks = []
            for chunk in template.root_render_func(template.new_context(dict(variables))):
                chunks.append(chunk)
                meter.rendered_size += len(chunk)
                meter.allow(meter.rendered_size)
        finally:
            CURRENT.reset(token)
        return Rendered("".join(chunks), tuple(meter.spans))
