# ruff: noqa: E501 - templates are data
"""Rendering equals transformers' to the byte: the deployed SmolLM3 template and a ChatML one, over a table."""

import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from smollm3.text.chat_template import render, render_with_spans

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Every dialect feature in one: loop variables and controls, macros, filters, namespaces, formats, whitespace.
DIALECT = """{{ bos_token }}
{%- set ns = namespace(total=0, seen=[]) %}
{%- macro show(x, sep=', ') %}[{{ x | join(sep) }}|{{ varargs | length }}]{% endmacro %}
{% for message in messages %}
    {% if message.role == 'tool' %}{% continue %}{% endif %}
    {% if loop.index0 > 8 %}{% break %}{% endif %}
    {% set ns.total = ns.total + message.content | length %}
    {% set ns.seen = ns.seen + [message.role] %}
{{ loop.index }}/{{ loop.length }} {{ loop.cycle('odd', 'even') }} {{ message | tojson }}
  {{ message.content.split(' ')[-1] ~ '!' }} {{ message.content[:3] }} {{ message.content | upper | trim }}
    {%- generation %}{{ message.content.title() }}{% endgeneration %}
{% endfor %}
{{ show(ns.seen) }} {{ show(ns.seen, '-', 1, 2) }} {{ ns.total * 2 + 1 }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ 7 % 3 }}
{{ '%s is %05.1f' % ('pi', 3.14159) }} {{ '{:>6}|{a}'.format('x', a=none) }} {{ 'a%sb' | format('z') }}
{{ messages | map(attribute='role') | unique | sort | join(',') }} {{ {'b': [1, true, none], 'a': 'é<>&'} | tojson }}
{{ {'b': 1} | tojson(indent=2) }} {{ dict(x=1, y=2).items() | list }} {{ range(3) | list }} {{ (1, 2)[::-1] }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ undefined_name | default('none') }}
{% filter upper %}filtered{% endfilter %}{% set block %}in a block{% endset %} {{ block }} {{ strftime_now('%Y-%m-%d %j %H:%M') }}
{%- macro wrap(x) %}<{{ x }}:{{ caller() }}>{% endmacro %}{% call wrap(1) %}body{% endcall %} {{ messages[-1].missing }} {{ 'x' in 'xyz' and not false }} {{ 1 if none is none }}
{{ "text\n  more" | indent(2) }} {{ 'abc' | replace('b', 'xx') }} {{ [3, 1, 2] | sort(reverse=true) }} {{ 'x' * 3 }}
{{ '<b>' | e }} {{ 3.7 | int }} {{ '5' | int + 1 }} {{ [1, 2, 3] | sum }} {{ [[1, 2], [3]] | map('length') | list }}
{{ messages[0].get('content', '') | wordcount }} {{ [1,2,3,4] | batch(2) | list }} {{ -3 | abs }} {{ 2.5 | round }}
{{ 'CaSe' | lower | capitalize }} {{ {'k': 'v'} | items | list }} {{ 'a b' | urlencode }} {{ ['x', 'y'] | first }}
{% if tools %}{% for tool in tools recursive %}{{ tool.name }}{% if tool.inner %}({{ loop(tool.inner) }}){% endif %}{% endfor %}{% endif %}
{% raw %}{{ raw }}{% endraw %}{# a comment #}
{% if add_generation_prompt %}<|im_start|>assistant{% endif %}
"""
NOW = datetime(2026, 11, 23, 14, 5, 9)
SPECIAL = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "It's \"nice\"", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", "北京"]}, "now": True},
        "required": [], "default": None}}},
    {"name": "time"},
]  # fmt: skip
USER = {"role": "user", "content": "Hello <b>you</b> 👋 {{ 7 * 7 }}"}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


LONG = [
    USER,
    {"role": "assistant", "content": "\n\nHi.\n"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\nYes."},
    {"role": "user", "content": "  spaces  \n"},
]
WITH_TOOLS = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": '{"x": 1}', "name": "f", "tool_call_id": "1"},
    {"role": "assistant", "content": "Done.", "reasoning_content": "Because."},
]
CHATS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [system("Be brief."), USER],
    "empty system": [system(""), USER],
    "think": [system("Be brief. /think"), USER],
    "no_think": [system("/no_think\nBe brief.  "), *LONG],
    "override": [system("/system_override Be brief. /no_think"), USER],
    "closing think": [system("Use <think>..</think> tags."), USER],
    "late system": [USER, system("Later."), USER],
    "many turns": LONG,
    "system and turns": [system("A\n\nB"), *LONG],
    "tool turns": WITH_TOOLS,
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "other roles": [{"role": "developer", "content": "x"}, USER],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompt": {"add_generation_prompt": True},
    "thinking": {"enable_thinking": True, "add_generation_prompt": True},
    "not thinking": {"enable_thinking": False, "add_generation_prompt": True},
    "tools": {"tools": TOOLS, "add_generation_prompt": True},
    "xml_tools": {"xml_tools": TOOLS},
    "python_tools": {"python_tools": ["def f(x):\n    '''It's'''", "g"]},
    "both": {"tools": TOOLS, "xml_tools": ["x"], "python_tools": TOOLS, "enable_thinking": False},
    "no tools": {"tools": [], "xml_tools": None},
    "documents": {"documents": [{"title": "t", "text": "x"}]},
}


class FrozenDatetime(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "FrozenDatetime":
        return cls(NOW.year, NOW.month, NOW.day, NOW.hour, NOW.minute, NOW.second)


@pytest.fixture(scope="module")
def oracle() -> Iterator[PreTrainedTokenizerFast]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: idx for idx, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", FrozenDatetime)
        yield PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def outcome(function: Any) -> Any:
    """What a rendering gives, or that it fails: both sides must agree on that too."""
    try:
        return function()
    except Exception:
        return "fails"


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", ["deployed", "chatml", "dialect"])
def test_equals_transformers(
    oracle: PreTrainedTokenizerFast, deployed_chat_template: str, template: str, chat: str, option: str
) -> None:
    source = {"deployed": deployed_chat_template, "chatml": CHATML, "dialect": DIALECT}[template]
    expected = outcome(
        lambda: oracle.apply_chat_template(
            CHATS[chat], chat_template=source, tokenize=False, **OPTIONS[option]
        )
    )
    ours = outcome(lambda: render(source, CHATS[chat], date=NOW, special_tokens=SPECIAL, **OPTIONS[option]))
    assert ours == expected
    refused = template != "deployed" and chat in ("tool turns", "parts")
    assert (ours == "fails") == refused


def test_the_table_is_rendered_not_refused(oracle: PreTrainedTokenizerFast) -> None:
    text = render(
        DIALECT, LONG, date=NOW, special_tokens=SPECIAL, tools=[{"name": "a", "inner": [{"name": "b"}]}]
    )
    assert "a(b)" in text
    assert "2026-11-23 327 14:05" in text
    assert "[user, assistant, user, assistant, user|0]" in text


@pytest.mark.parametrize(
    "content", ["The answer is", "The answer is  ", "a\n", [{"type": "text", "text": "part"}]]
)
@pytest.mark.parametrize("template", ["deployed", "chatml", "trimmed"])
def test_continuing_the_final_message_equals_transformers(
    oracle: PreTrainedTokenizerFast, deployed_chat_template: str, template: str, content: Any
) -> None:
    trimmed = CHATML.replace("message['content']", "message['content'] | trim")
    source = {"deployed": deployed_chat_template, "chatml": CHATML, "trimmed": trimmed}[template]
    chat = [USER, {"role": "assistant", "content": content}]
    expected = outcome(
        lambda: oracle.apply_chat_template(
            chat, chat_template=source, tokenize=False, continue_final_message=True
        )
    )
    assert (
        outcome(lambda: render(source, chat, date=NOW, special_tokens=SPECIAL, continue_final_message=True))
        == expected
    )


@pytest.mark.parametrize("chat", ["many turns", "no_think", "tool turns"])
@pytest.mark.parametrize("template", ["deployed", "dialect"])
def test_assistant_spans_equal_transformers(deployed_chat_template: str, template: str, chat: str) -> None:
    source = {"deployed": deployed_chat_template, "dialect": DIALECT}[template]
    messages = [
        {key: value for key, value in message.items() if value is not None} for message in CHATS[chat]
    ]
    if template == "dialect":
        messages = [message for message in messages if "content" in message]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", FrozenDatetime)
        (text,), (spans,) = chat_template_utils.render_jinja_template(
            [messages], chat_template=source, return_assistant_tokens_mask=True, **SPECIAL
        )
    ours = render_with_spans(source, messages, date=NOW, special_tokens=SPECIAL)
    assert ours.text == text
    assert list(ours.generation_spans) == spans
    assert len(spans) >= 2


def test_the_small_models_own_template(oracle: PreTrainedTokenizerFast, small_model: Any) -> None:
    # A GGUF string: its key, a type word (8), its length, its bytes.
    data = Path(small_model).read_bytes()[: 1 << 24]
    start = data.index(key := b"tokenizer.chat_template") + len(key) + 12
    source = data[start : start + int.from_bytes(data[start - 8 : start], "little")].decode()
    assert "SmolLM" in source
    for chat in ("user", "system and turns", "late system"):
        expected = oracle.apply_chat_template(
            CHATS[chat], chat_template=source, tokenize=False, add_generation_prompt=True
        )
        assert render(source, CHATS[chat], add_generation_prompt=True, special_tokens=SPECIAL) == expected
