# ruff: noqa: E501 - a table of expressions
"""Every filter, test, method and operator that the sandbox offers gives what transformers' environment gives."""

import warnings
from typing import Any

import pytest

from smollm3.errors import TemplateError
from smollm3.text.chat_template import render
from smollm3.text.sandbox_filters import FILTERS_OFFERED

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.utils.chat_template_utils import render_jinja_template

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "  Hello <b>World</b> & 'all'\n"},
    {"role": "assistant", "content": "één 北京 👋", "n": 3, "tags": ["b", "a", "B"]},
    {"role": "user", "content": "", "n": -1.5, "tags": []},
]

EXPRESSIONS = [
    # filters
    "-3 | abs", "m | attr('role')", "[1, 2, 3, 4, 5] | batch(2) | list", "[1, 2, 3] | batch(2, 'x') | list",
    "'hELLO wORLD' | capitalize", "'ab' | center(9)", "'ab' | center(width=7)", "'ab' | center(1)",
    "m | count", "nothing | d('x')", "'' | default('x', true)", "nothing | default(value)", "none | default('x')",
    "{'b': 1, 'a': 2} | dictsort", "{'b': 1, 'a': 2} | dictsort(false, 'value', true)",
    "'<b>&\"' | e", "'<b>' | escape | upper", "'<b>' | escape ~ '<i>'", "[1, 2] | first", "'abc' | first",
    "'3.5' | float", "'x' | float(1.0)", "'%s-%03d' | format('a', 7)", "'%(a)s' | format(a=1)",
    "messages | groupby('role') | map('first') | list", "messages | groupby('n', default=0) | length",
    "'a\\nb\\n\\nc' | indent", "'a\\nb\\n\\nc' | indent(2, true, true)", "'a\\nb' | indent('>>')", "'a\\nb' | indent(width=1)",
    "'42' | int", "'x' | int(7)", "'ff' | int(0, 16)", "3.9 | int", "{'a': 1} | items | list", "nothing | items | list",
    "[1, 2] | join", "[1, 2] | join('-')", "messages | join(', ', attribute='role')", "['<', '>'|e] | join('&')", "'abc' | join('.')",
    "[1, 2] | last", "'abc' | last", "messages | length", "(1, 2) | list", "'abc' | list", "{'a': 1} | list", "'ÀB' | lower",
    "messages | map(attribute='role') | list", "messages | map(attribute='n', default='?') | list", "['a', 'b'] | map('upper') | list",
    "messages | map(attribute='tags.0', default='-') | list", "['a'] | map('replace', 'a', 'c') | list",
    "[3, 1, 2] | max", "[3, 1, 2] | min", "['b', 'A'] | min", "['b', 'A'] | min(case_sensitive=true)", "messages | map(attribute='role') | max",
    "[1, 2, 3] | reject('odd') | list", "messages | rejectattr('n') | map(attribute='role') | list",
    "'aXbX' | replace('X', '-')", "'aXbX' | replace('X', '-', 1)", "'ab' | replace('', '.')", "12 | replace(1, 3)",
    "[1, 2] | reverse | list", "'abc' | reverse", "2.567 | round(2)", "2.5 | round", "2.1 | round(0, 'ceil')", "27 | round(-1)",
    "'<b>' | safe", "[0, 1, ''] | select | list", "[1, 2, 3, 4] | select('divisibleby', 2) | list", "['a', 'b'] | select('in', 'bc') | list",
    "messages | selectattr('role', 'equalto', 'user') | list | length", "messages | selectattr('n', 'defined') | list | length",
    "[1, 2, 3, 4, 5] | slice(2) | list", "[1, 2, 3] | slice(2, 'x') | list", "['b', 'A', 'c'] | sort", "['b', 'A'] | sort(case_sensitive=true)",
    "[3, 1] | sort(reverse=true)", "messages | sort(attribute='role,content') | map(attribute='role') | list",
    "[1, {'a': none}] | string", "[1, 2.5] | sum", "messages | selectattr('n') | sum(attribute='n')", "[1] | sum(start=10)",
    "'they are bill\\'s friends' | title", "{'b': 'é<', 'a': [true, none, 1.5]} | tojson", "[1, {'a': 2}] | tojson(indent=2)", "{'b': 1, 'a': 2} | tojson(sort_keys=true)",
    "'é👋' | tojson(ensure_ascii=true)", "{'a': 1} | tojson(separators=(',', ':'))", "[] | tojson(indent=4)", "m.content | tojson",
    "'  x ' | trim", "'xxaxx' | trim('x')", "'hello big world' | truncate(9)", "'hello big world' | truncate(9, true, '…', 0)",
    "['a', 'A', 'b'] | unique | list", "messages | unique(attribute='role') | list | length", "'abc' | upper", "'a b/é?' | urlencode", "{'a': 'b c', 'd': 1} | urlencode",
    "'a b  c' | wordcount",
    # tests
    "1 is odd", "2 is even", "4 is divisibleby(2)", "nothing is defined", "m is mapping", "'a' is string", "1 is number",
    "1.0 is float", "1 is integer", "true is boolean", "true is true", "false is false", "none is none", "[1] is sequence",
    "[1] is iterable", "3 is iterable", "1 is eq 1", "2 is gt(1)", "'a' is in('abc')", "'ab' is lower", "'AB' is upper",
    "m is sameas(m)", "nothing is undefined", "'upper' is filter", "'odd' is test", "range is callable", "not 1 is none",
    # methods
    "'a,b,,c'.split(',')", "'a b'.split()", "'a,b,c'.rsplit(',', 1)", "'aXbXc'.partition('X')", "'aXbXc'.rpartition('X')",
    "'a\\nb'.splitlines()", "' x '.strip()", "'xx1xx'.strip('x')", "' x '.lstrip() ~ '|'", "' x '.rstrip() ~ '|'",
    "'abc'.startswith('ab')", "'abc'.endswith(('x', 'c'))", "'abc'.find('c')", "'abcabc'.rfind('c')", "'aaa'.count('a')",
    "'abc'.index('b')", "'abc'.upper()", "'ABC'.lower()", "'ab cd'.title()", "'ab'.capitalize()", "'aB'.swapcase()", "'ß'.casefold()",
    "'ab'.replace('a', 'xx')", "'aa'.replace('a', 'b', 1)", "'-'.join(['a', 'b'])", "'5'.zfill(3)", "'a'.ljust(3) ~ '|'", "'a'.rjust(3)", "'a'.center(4) ~ '|'",
    "'a\\tb'.expandtabs(4)", "'abc'.removeprefix('a')", "'abc'.removesuffix('c')", "'12'.isdigit()", "'a1'.isalnum()", "'a'.isalpha()", "' '.isspace()",
    "'{} {}'.format(1, 'b')", "'{0:>5}|{a:.2f}|{b[0]}|{c.role}'.format('x', a=1.234, b=[9], c=m)", "'{a}'.format_map({'a': 3})", "'{!r:>6}'.format('x')",
    "m.get('role')", "m.get('missing', 'd')", "m.keys() | list", "m.values() | list", "m.items() | list", "m.copy() == m",
    "[1, 2, 1].count(1)", "[1, 2].index(2)", "(1, 2, 2).count(2)", "3.0.is_integer()", "true.bit_length()",
    # operators, literals, access
    "1 + 2 * 3 - 4 / 8", "7 // 2 ~ 7 % 4", "2 ** 10", "-2 ** 2", "'a' + 'b'", "'ab' * 3", "[1] + [2]", "(1,) + (2,)", "[0] * 3",
    "'%s %r %5.1f%%' % ('a', 'b', 2.25)", "'%(x)s' % {'x': 1}", "'a' ~ 1 ~ none ~ true ~ 1.0", "1 < 2 < 3", "'a' in m", "3 not in [1, 2]",
    "m['role'] ~ m.role", "messages[-1].content", "messages[0].missing", "messages[9]", "'abcdef'[1:4]", "'abcdef'[::-1]", "messages[1:] | length",
    "[1, 2, 3][-2:]", "(1, 2, 3)[0]", "{'a': {'b': 1}}.a.b", "{1: 'x'}[1]", "m.content if m.role == 'user' else 'no'", "'x' if false",
    "none or 'x'", "0 and 1", "not ''", "1.0", "1e3", "true", "[1, 'a', none, {'k': (1, 2)}]", "'a' 'b'", "[] == []", "'10' | int + 1",
    # globals
    "range(3) | list", "range(5, 0, -2) | list", "dict(a=1, b=2)", "dict([('a', 1)])", "dict.fromkeys(['a'], 0)", "namespace(a=1).a",
    "cycler('a', 'b').next()", "joiner(', ')() ~ 'x'",
    # refused on both sides
    "missing.x", "'a' + 1", "[1] | first | length", "1 / 0", "m.update({})", "''.__class__.__mro__", "range(10**9)", "raise_exception('no')",
]  # fmt: skip

STATEMENTS = [
    "{% for m in messages %}{{ loop.index }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{{ loop.depth }}{% endfor %}",
    "{% for m in messages if m.n is defined %}{{ loop.index }}/{{ loop.length }} {{ m.n }};{% else %}none{% endfor %}",
    "{% for x in [] %}{% else %}empty{% endfor %}{% for x in missing %}{% else %}missing{% endfor %}",
    "{% for k, v in messages[1].items() %}{{ k }}={{ v }},{% if loop.changed(k) %}!{% endif %}{% endfor %}",
    "{% for c in 'abc' %}{% if c == 'b' %}{% continue %}{% endif %}{{ c }}{% endfor %}{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for t in [{'c': [{'c': []}]}] recursive %}<{{ loop.depth }}{{ loop(t.c) }}>{% endfor %}",
    "{% for row in [1, 2, 3, 4] | batch(2) %}{% for x in row %}{{ x }}{{ loop.cycle('a', 'b') }}{% endfor %};{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{% endfor %}{{ x }}{% set a, b = (1, 2) %}{{ a }}{{ b }}",
    "{% set ns = namespace(x=0) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% set block | upper %}a{{ 1 }}{% endset %}{{ block }}{% with y = 2 %}{{ y }}{% endwith %}{{ y }}",
    "{% macro m(a, b='d', c=none) %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}{{ m(1, 2, 3, 4, z=5) }}{{ m.name }}",
    "{% macro m(x) %}{{ x }}{% if x %}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(5) }}",
    "{% macro m() %}[{{ caller(1) }}]{% endmacro %}{% call(y) m() %}{{ y }}{{ messages | length }}{% endcall %}",
    "{% block a %}A{{ messages | length }}{% endblock %}{{ self.a() }}",
    "{% if messages | length > 5 %}a{% elif messages %}b{% else %}c{% endif %}{% filter upper | replace('A', 'x') %}aba{% endfilter %}",
    "  {% if true %}\n  indented\n  {% endif %}\n{{- ' kept ' -}}\n\n  {#- gone -#}  x\n",
    "{% raw %}{{ not }} {% run %}{% endraw %}\n{% autoescape true %}{{ '<' }}{{ messages[0].content ~ messages[0].content|safe }}{% endautoescape %}{{ '<' }}",
    "{% generation %}a{{ 1 }}{% endgeneration %}{%- generation -%} b {%- endgeneration -%}",
    "{{ raise_exception('no ' ~ messages[0].role) if false else 'fine' }}\n",
]  # fmt: skip


def both(source: str) -> tuple[str | None, str | None]:
    """Render with both; None where one refuses."""
    options: dict[str, Any] = {"bos_token": "<s>"}
    try:
        expected = render_jinja_template([MESSAGES], chat_template=source, **options)[0][0]
    except Exception:
        expected = None
    try:
        ours = render(source, MESSAGES, special_tokens=options)
    except TemplateError:
        ours = None
    return ours, expected


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions(expression: str) -> None:
    ours, expected = both("{% set m = messages[0] %}{{ " + expression + " }}")
    assert ours == expected
    refused = EXPRESSIONS.index(expression) >= EXPRESSIONS.index("missing.x")
    assert (ours is None) == refused


@pytest.mark.parametrize("source", STATEMENTS)
def test_statements(source: str) -> None:
    ours, expected = both(source)
    assert ours is not None
    assert ours == expected


def test_the_table_has_every_filter() -> None:
    text = " ".join(EXPRESSIONS)
    missing = [name for name in FILTERS_OFFERED if f"| {name}" not in text]
    assert missing == []
