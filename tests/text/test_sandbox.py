# ruff: noqa: E501 - templates are data
"""The sandbox holds: no way out of it (security cases 8 to 10), no end in time or memory that it does not set."""

import gc
import re
import resource
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest

import smollm3
from smollm3.errors import TemplateError
from smollm3.text.meter import Limits, TemplateLimitError, weigh
from smollm3.text.sandbox import render_source, sandbox, template_variables

NOW = datetime(2026, 11, 23, 14, 5)
ROOT = Path(smollm3.__file__).parent


def rendered(source: str, limits: Limits | None = None, **variables: Any) -> str:
    values = {"messages": [{"role": "user", "content": "hi"}], **variables}
    return render_source(source, values, now=NOW, limits=limits or Limits()).text


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|groupby('__class__') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__}'.format_map({'0': ''}) }}",
    "{{ ('{0.__class__.__init__.__globals__}'|attr('format'))(cycler) }}",
    "{{ ['{0.__class__.__mro__}']|map('format', '')|list|first|length + [1]|map(attribute='__class__')|list|length }}",
    "{{ ''|attr('for'~'mat')|attr('__self__') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ dict.fromkeys.__func__.__globals__ }}",
    "{{ range.__self__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ loop.__init__ }}{% for x in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "{% for x in [1] %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "{{ (1).__class__.__base__ }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].__setitem__('role', 'x') }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(__init__=1) }}",
    "{% include 'etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends '/etc/passwd' %}",
    "{% from 'os' import system %}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ environment.from_string('x') }}",
    "{{ 'x'.encode() }}",
    "{{ 'x'.translate({120: 'y' }) }}",
    "{{ (10).to_bytes(1000000000, 'big') }}",
    "{{ messages | random }}",
    "{{ 'x' | xmlattr }}",
    "{% do messages.append(1) %}",
    "{% debug %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out(source: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    text = error = ""
    try:
        text = render_source(source, {"messages": messages}, now=NOW).text
    except TemplateError as refusal:
        error = str(refusal)
    # As for any unknown name, a template may also get nothing: in no case does anything of Python show.
    assert not re.search(r"<|class|object|module|function|globals|built|self", text)
    assert "\n" not in error
    assert len(error) < 400
    assert messages == [{"role": "user", "content": "hi"}]


BOMBS = {
    "long range": "{% for i in range(999999999999) %}{% endfor %}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "deep loops": "{% for a in range(99) %}" * 12 + "{% set x = 1 %}" + "{% endfor %}" * 12,
    "many loops": "{% for a in range(9) %}" * 30 + "x" + "{% endfor %}" * 30,
    "filtered loop": "{% for a in range(99999) if a in range(99999)|list|map('string')|list %}{% endfor %}" * 50,
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "forked macro": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "recursive loop": "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "recursive caller": "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}",
    "times": "{{ 'x' * 9999999999 }}",
    "list times": "{{ [1] * 9999999999 }}",
    "times reversed": "{{ 9999999999 * ['x'] }}",
    "power": "{{ 9 ** 999999999 }}",
    "power of two": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x ** 3 %}{% endfor %}",
    "product": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "hex digits": "{{ ('f' * 900000) | int(0, 16) }}",
    "round": "{{ 1.5 | round(999999999) }}{{ 2 | round(999999999, 'ceil') }}",
    "doubling": "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "adding": "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "joining": "{% set x = ('x' * 9999) %}{{ (x | list) | join(x) }}",
    "joining twice": "{% set x = ('x' * 9999) %}{{ x.join(x | list) }}",
    "replacing": "{% set x = ('x' * 9999) %}{{ x | replace('x', x) }}",
    "replacing method": "{% set x = ('x' * 9999) %}{{ x.replace('x', x) }}",
    "replacing nothing": "{% set x = ('x' * 9999) %}{{ x | replace('', x) }}",
    "center": "{{ 'x' | center(999999999) }}",
    "center named": "{{ 'x' | center(width=999999999) }}",
    "justify": "{{ 'x'.ljust(999999999) }}",
    "zfill": "{{ 'x'.zfill(999999999) }}",
    "tabs": "{{ '\\t'.expandtabs(999999999) }}",
    "indent": "{{ ('x\\n' * 9999) | indent(9999) }}",
    "indent text": "{{ ('x\\n' * 9999) | indent('x' * 9999) }}",
    "percent": "{{ '%999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "percent precision": "{{ '%.999999999f' % 1 }}",
    "percent many": "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "percent filter": "{{ '%999999999d' | format(1) }}",
    "format width": "{{ '{:999999999}'.format(1) }}",
    "format nested": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "format many": "{{ ('{0}' * 9999).format('x' * 99999) }}",
    "json indent": "{{ [[[[1]]]] | tojson(indent=999999999) }}",
    "batch": "{{ [1] | batch(999999999, 0) | list }}",
    "slice": "{{ [1] | slice(999999999) | list }}",
    "sum lists": "{{ [[1]] | sum(start=[]) }}",
    "shared lists": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "shared tuples": "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "shared dicts": "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
    "shared varargs": "{% macro m() %}{{ m(varargs, varargs) }}{% endmacro %}{{ m(1) }}",
    "shared kwargs": "{% macro m() %}{{ m(a=kwargs, b=kwargs) }}{% endmacro %}{{ m(c=1) }}",
    "shared dict call": "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
    "shared by map": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [0, 0]|map('replace', 0, ns.x)|list + [ns.x] %}{% endfor %}",
    "deep list": "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "deep tuple": "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}{% endfor %}{{ {ns.x: 1} }}",
    "nested maps": "{% set ns = namespace(x=range(9)) %}{% for i in range(99999) %}{% set ns.x = ns.x|map('string')|list %}{% endfor %}" * 9,
    "big output": "{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}",
    "big macro output": "{% macro m() %}{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}{% endmacro %}{% set x = m() %}",
    "big block set": "{% set x %}{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}{% endset %}",
    "doubling block": "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}",
    "many big values": "{% set ns = namespace(a='x' * 900000) %}{% for i in range(9999) %}{% set ns.a = ns.a[1:] ~ 'y' %}{% endfor %}",
    "search from the right": "{% set x = 'a' * 900000 %}{{ x.rfind('b' ~ x[:400000]) }}",
    "membership": "{% set x = range(9999)|list %}{{ x | select('in', 'y' * 900000) | list }}",
    "long path": "{{ range(9999)|map(attribute='0.' * 90000)|list }}",
    "date width": "{{ strftime_now('%999999999d') }}",
    "date length": "{{ strftime_now('%c' * 99999) }}",
    "long source": "x" * 300_000,
    "many nodes": "{{ a }}" * 40_000,
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long sum": "{{ " + "1+" * 5000 + "1 }}",
    "deep ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "long attribute": "{{ a" + ".b" * 5000 + " }}",
    "unary": "{{ " + "-" * 5000 + "1 }}",
    "unclosed": "{% for x in y %}" + "{{ " * 9999,
    "comments": "{#" * 90_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped(name: str) -> None:
    start = time.thread_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = Limits(seconds=1.0)
    with pytest.raises(TemplateError) as caught:
        render_source(BOMBS[name], {"messages": []}, now=NOW, limits=limits)
    message = str(caught.value)
    assert message.startswith("the chat template ")
    assert "\n" not in message
    assert len(message) < 400
    assert time.thread_time() - start < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB
    gc.collect()


def test_time_is_limited_between_cheap_steps() -> None:
    source = (
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages|length }}{% endfor %}{% endfor %}"
    )
    start = time.thread_time()
    with pytest.raises(TemplateError, match=r"longer than 0.2 seconds"):
        rendered(source, Limits(seconds=0.2, steps=10**12))
    assert time.thread_time() - start < 1


@pytest.mark.parametrize(
    ("limits", "source", "says"),
    [
        (Limits(steps=50), "{% for i in range(60) %}{% endfor %}", "more than 50 steps"),
        (Limits(depth=5), "{% macro m(n) %}{{ m(n - 1) if n }}{% endmacro %}{{ m(9) }}", "deeper than 5"),
        (Limits(nesting=4), "{{ [[[[[1]]]]] }}", "deeper than 4"),
        (Limits(value_size=90), "{{ 'x' * 400 }}", "grow past"),
        (Limits(value_size=90), "{% for i in range(60) %}12345678901234567890{% endfor %}", "grow past"),
        (Limits(total_size=90), "{% for i in range(9) %}{% set x = 'x' * 1000 %}{% endfor %}", "together"),
        (Limits(source_size=5), "123456", "longer than 5"),
        (Limits(num_nodes=4), "{{ a }}{{ b }}{{ c }}{{ d }}", "more than 4 nodes"),
    ],
)
def test_each_limit_says_what_it_stopped(limits: Limits, source: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        render_source(source, {}, now=NOW, limits=limits)


def test_limits_grow_with_the_input() -> None:
    text = "x" * 3_000_000
    assert rendered("{{ text ~ '!' }}", text=text) == text + "!"
    many = [{"role": "user", "content": "word " * 50} for _ in range(3000)]
    source = "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content | trim }}{% endfor %}"
    assert len(rendered(source, messages=many)) == 3000 * (6 + 249)


def test_deep_input_is_refused() -> None:
    deep: Any = 1
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(TemplateError, match="nest deeper"):
        rendered("x", tools=deep)


def test_the_templates_own_refusal_is_one_line() -> None:
    with pytest.raises(TemplateError, match=r"refuses these messages: roles must alternate now$"):
        rendered("{{ raise_exception('roles must\n   alternate\tnow') }}")


def test_syntax_errors_name_the_line() -> None:
    with pytest.raises(TemplateError, match="line 2"):
        rendered("a\n{% if %}")
    with pytest.raises(TemplateError, match="no_such_filter"):
        rendered("{{ 1 | no_such_filter }}")
    with pytest.raises(TemplateError, match="no_such_name"):
        rendered("{{ no_such_name.x.y }}")


def test_one_constructor() -> None:
    """Case 9: whatever renders, renders here."""
    makers = ("Environment(", "jinja2.Template(", "Template(", "from_string(")
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if "jinja2" in path.read_text() and any(maker in path.read_text() for maker in makers)
    }
    assert found == {"text/sandbox.py"}
    assert sandbox() is sandbox()
    assert tuple(int(part) for part in jinja2.__version__.split(".")[:3]) >= (3, 1, 6)


def test_threads_do_not_share_a_meter() -> None:
    errors: list[Exception] = []

    def work(count: int) -> None:
        try:
            for _ in range(30):
                text = rendered("{% for i in range(n) %}{{ i }},{% endfor %}", n=count)
                assert text.count(",") == count
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(count,)) for count in (5, 50, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_variables_of_a_template() -> None:
    source = "{% set a = 1 %}{{ a }}{{ b }}{% for c in d %}{{ c }}{% endfor %}{{ range(3) }}{{ strftime_now('%d') }}"
    assert template_variables(source) == {"b", "d"}


def test_weigh_counts_what_is_reached() -> None:
    shared = ["abc", 1]
    weight = weigh({"k": shared, "l": shared}, max_size=1000, max_depth=9)
    assert (weight.nodes, weight.chars, weight.depth) == (9, 8, 2)
    with pytest.raises(TemplateLimitError, match="larger than 5"):
        weigh(["abcdef"], max_size=5, max_depth=9)
