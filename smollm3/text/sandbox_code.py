"""How templates are compiled, and the objects they get: each loop, literal, slice and output is metered."""

from collections.abc import Callable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.utils import Namespace as JinjaNamespace

from smollm3.text.meter import CURRENT


class MeteredIterable:
    """Any iterable of a `for`, counted step by step; keeps its length for `loop.length`."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        tick = CURRENT.get().tick
        for item in self._items:
            tick()
            yield item

    def __len__(self) -> int:
        return len(self._items)


class Namespace(JinjaNamespace):
    """Jinja's namespace without private names, and opaque: what is in it is not printed."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            Namespace._check(name)
        JinjaNamespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        Namespace._check(name)
        JinjaNamespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no private name such as {name!r}")


class Dict:
    """`dict(...)` and `dict.fromkeys(...)`, without the type behind them."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: remembers which characters are the assistant's."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("remember"), [], [], body).set_lineno(lineno)

    def remember(self, caller: Callable[[], str]) -> str:
        meter = CURRENT.get()
        start = meter.rendered_size
        text = caller()
        meter.spans.append((start, start + len(text)))
        return text


class MeteredCode(CodeGenerator):
    """Compiles templates so that every operation the sandbox cannot intercept passes the meter."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        join = "markup_join" if frame.eval_ctx.autoescape else "str_join"
        if frame.eval_ctx.volatile:
            # As Jinja decides it, which inside {% autoescape %} is for plain text.
            join = "(markup_join if context.eval_ctx.volatile else str_join)"
        self.write(f"environment.concatenate({join}, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.slice(")
        self.visit(node.node, frame)
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            self.visit(bound or nodes.Const(None), frame)
        self.write(")")

    def _admitted(self, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write("environment.admit(")
        visit(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._admitted(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._admitted(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._admitted(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        items = nodes.EnvironmentAttribute("metered")
        node.iter = nodes.Call(items, [node.iter], [], None, None, lineno=node.iter.lineno)
        super().visit_For(node, frame)

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:  # noqa: N802
        literal = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        self.writeline(f"environment.emit({literal})")
        super().visit_Output(node, frame)
