# ruff: noqa: E501 - a table of cases
"""Names that templates get, dates, and our own template for SmolLM3: each bug of the deployed one, mended."""

import locale
import re
from datetime import date, datetime
from typing import Any

import pytest

from smollm3.errors import ParameterError, PromptError, TemplateError
from smollm3.text.chat_template import fixed_template, reads_variable, render, render_with_spans
from smollm3.text.messages import normalise
from smollm3.text.template_date import moment, strftime

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "description": "It's", "strict": True, "x": None}}
DAY = "2026-11-23"


def fixed(messages: list[dict[str, Any]], **options: Any) -> str:
    return render("fixed", messages, date=DAY, **options)


def turns_of(text: str) -> list[tuple[str, str]]:
    """Split a rendering into its turns; fails where a turn is not closed."""
    pattern = re.compile(r"<\|im_start\|>(\w+)\n((?:(?!<\|im_(?:start|end)\|>).)*)<\|im_end\|>\n", re.DOTALL)
    assert pattern.sub("", text).count("<|im_start|>") <= 1
    assert pattern.sub("", text) in (
        "",
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n",
    )
    return pattern.findall(text)


# Variables


@pytest.mark.parametrize(
    "name",
    [
        "messages_", "tokenize", "strftime_now", "raise_exception", "namespace", "range", "dict", "chat_template",
        "loop", "self", "bos_token", "eos_token", "return_tensors", "_private", "__class__", "not a name", "now",
        "padding", "max_length", "environment", "lipsum",
    ],
)  # fmt: skip
def test_case_12_reserved_and_unknown_names_are_refused(name: str) -> None:
    source = "{{ messages_x }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ParameterError, match=re.escape(repr(name))):
        render(source, [USER], **{name: True})


def test_variables_of_requests_cannot_replace_arguments() -> None:
    """`chat_template_kwargs` of a request is spread over the call: Python itself refuses a second value."""
    for name in ("messages", "add_generation_prompt", "continue_final_message"):
        with pytest.raises(TypeError):
            render("x", [USER], add_generation_prompt=False, continue_final_message=False, **{name: True})


def test_variables_that_the_template_reads_are_passed() -> None:
    source = "{{ effort }} {{ level | default('none') }}{% if enable_thinking %} thinks{% endif %}"
    assert render(source, [USER], effort="high", enable_thinking=True) == "high none thinks"
    assert render("x", [USER], enable_thinking=True, documents=[{"title": "t"}]) == "x"
    with pytest.raises(
        ParameterError, match="reads no 'efort': it reads documents, effort, enable_thinking, level"
    ):
        render(source, [USER], efort="high")
    assert reads_variable(source, "level", "other")
    assert not reads_variable(source, "tools")


def test_messages_that_are_none() -> None:
    for messages in ([], "hi", {"role": "user"}):
        with pytest.raises(PromptError, match="non-empty list"):
            render("x", messages)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"messages\[0\] is a str"):
        render("x", ["hi"])
    with pytest.raises(PromptError, match="a object cannot go into a chat template"):
        render("x", [{"role": "user", "content": object()}])
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(PromptError, match="deeper than 100"):
        render("x", [{"role": "user", "content": deep}])


def test_continuing_needs_a_final_text_that_is_rendered() -> None:
    with pytest.raises(ParameterError, match="exclude each other"):
        render("x", [USER], continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(PromptError, match=r"messages\[0\] has no text content to continue"):
        render("x", [{"role": "assistant"}], continue_final_message=True)
    with pytest.raises(TemplateError, match="does not render the final message"):
        render("x", [{"role": "assistant", "content": "y"}], continue_final_message=True)


# Dates


def test_the_date_is_pinned_by_any_spelling() -> None:
    source = "{{ strftime_now('%d %B %Y') }}"
    for when in (date(2026, 11, 3), datetime(2026, 11, 3, 23, 59), "2026-11-03", "2026-11-03T10:00:00"):
        assert render(source, [USER], date=when) == "03 November 2026"
    now = datetime.now()
    assert render(source, [USER]) in {strftime(day, "%d %B %Y") for day in (now, datetime.now())}
    for wrong in ("yesterday", "2026-13-01", 3):
        with pytest.raises(PromptError, match=r"is not a date: pass a datetime.date"):
            moment(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "when", [datetime(2026, month, 3 + month, 2 * month - 1, 5, 7) for month in range(1, 13)]
)
def test_dates_equal_the_c_locale(when: datetime) -> None:
    assert locale.setlocale(locale.LC_TIME) in ("C", "C.UTF-8", "en_US.UTF-8", "POSIX")
    for pattern in (
        "%A %a %B %b %h %p",
        "%d %H %I %j %M %S %U %w %W %y %Y %%",
        "%x %X",
        "%c",
        "%-d %e",
        "%^a",
        "%Z%z|",
    ):
        assert strftime(when, pattern) == when.strftime(pattern)


# Our own template


def test_bug_the_system_turn_is_closed_without_tools() -> None:
    system, user = turns_of(fixed([USER]))
    assert system[0] == "system"
    assert user == ("user", "Hi")
    assert (
        "Knowledge Cutoff Date: June 2025\nToday Date: 23 November 2026\nReasoning Mode: /think\n"
        in system[1]
    )


def test_same_as_the_deployed_template_where_that_is_right(deployed_chat_template: str) -> None:
    chat = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Yes."}, USER]
    for options in ({}, {"enable_thinking": False}, {"add_generation_prompt": True}):
        theirs = render(deployed_chat_template, chat, date=DAY, **options)
        assert fixed(chat, **options) == theirs.replace("Be brief.\n\n", "Be brief.\n\n<|im_end|>\n")
        default = render(deployed_chat_template, [USER], date=DAY, **options)
        assert fixed([USER], **options) == default.replace(
            "<|im_start|>user", "<|im_end|>\n<|im_start|>user", 1
        )
    with_tools = render(deployed_chat_template, chat, date=DAY, tools=["{}"])
    assert fixed(chat, tools=["{}"]) == with_tools
    with_code = render(deployed_chat_template, chat, date=DAY, python_tools=["def f(): ..."])
    assert fixed(chat, python_tools=["def f(): ..."]) == with_code


@pytest.mark.parametrize("thinking", [True, False])
def test_bug_a_closing_think_tag_is_no_flag(thinking: bool) -> None:
    text = "Use <think>..</think> and /thinking or a/no_think."
    system, *_ = turns_of(fixed([{"role": "system", "content": text}, USER], enable_thinking=thinking))
    assert text in system[1]
    assert f"Reasoning Mode: {'/think' if thinking else '/no_think'}\n" in system[1]


@pytest.mark.parametrize(
    ("text", "mode", "left"),
    [
        ("/no_think", "/no_think", "trained by Hugging Face.\n\n"),
        ("/think", "/think", "Thought section"),
        ("Be brief. /no_think", "/no_think", "\n\nBe brief.\n\n"),
        ("/no_think\nBe brief.\n\n  - kept", "/no_think", "\n\nBe brief.\n\n  - kept\n\n"),
        ("A /think B", "/think", "\n\nA B\n\n"),
    ],
)
def test_flags_that_stand_by_themselves_set_the_mode(text: str, mode: str, left: str) -> None:
    (_, body), *_ = turns_of(
        fixed([{"role": "system", "content": text}, USER], enable_thinking=mode == "/no_think")
    )
    assert f"Reasoning Mode: {mode}\n" in body
    assert left in body


def test_bug_tools_are_json() -> None:
    for name in ("tools", "xml_tools", "python_tools"):
        (_, body), *_ = turns_of(fixed([USER], **{name: [TOOL, "as text"]}))
        assert (
            '<tools>\n{"type": "function", "function": {"name": "f", "description": "It\'s", "strict": true, "x": null}}'
            "\nas text\n</tools>"
        ) in body


def test_bug_both_kinds_of_tools_are_kept_apart() -> None:
    (_, body), *_ = turns_of(fixed([USER], tools=["T"], xml_tools=["X"], python_tools=["P"]))
    assert "<tools>\nT\nX\n</tools>" in body
    assert "</tool_call>\n\nWhen you send" in body
    assert "<tools>\nP\n</tools>" in body


def test_bug_tools_survive_a_system_override() -> None:
    chat = [{"role": "system", "content": "Mine. /system_override"}, USER]
    assert turns_of(fixed(chat))[0] == ("system", "Mine.")
    system = turns_of(fixed(chat, tools=[TOOL]))[0][1]
    assert system.startswith("Mine.\n\n### Tools\n\n")
    assert "Metadata" not in system
    assert '"name": "f"' in system


def test_bug_tool_calls_and_thoughts_are_rendered() -> None:
    calls = [
        {"function": {"name": "f", "arguments": {"a": True}}},
        {"name": "g", "arguments": '{"b": 1}'},
        {"name": "h", "arguments": ""},
    ]
    message = {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": calls}
    text = turns_of(fixed([USER, message]))[2][1]
    assert text == (
        '<think>\nHm.\n</think>\n<tool_call>\n{"name": "f", "arguments": {"a": true}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {"b": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "h", "arguments": {}}\n</tool_call>'
    )
    words = turns_of(fixed([USER, {**message, "content": "Now:"}]))[2][1]
    assert words == text.replace("</think>\n", "</think>\nNow:\n")


def test_bug_normalised_and_raw_messages_render_the_same() -> None:
    chat = [
        USER,
        {"role": "assistant", "content": "A", "reasoning_content": "Hm.", "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "4."}]},
    ]  # fmt: skip
    assert fixed(normalise(chat)) == fixed(chat)


def test_bug_thoughts_are_not_doubled_without_thinking() -> None:
    chat = [
        USER,
        {"role": "assistant", "content": "<think>\n\n</think>\nA"},
        {"role": "assistant", "content": "B"},
        {"role": "assistant", "content": "C", "reasoning_content": "Hm."},
    ]
    _, _, *answers = turns_of(fixed(chat, enable_thinking=False, add_generation_prompt=True))
    assert [text for _, text in answers] == [
        "<think>\n\n</think>\nA",
        "<think>\n\n</think>\nB",
        "<think>\nHm.\n</think>\nC",
    ]


def test_bug_later_system_messages_and_parts_are_kept() -> None:
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "First. /no_think"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
        {"role": "system", "content": "Later."},
        {"role": "tool", "content": "4"},
    ]
    system, *rest = turns_of(fixed(chat))
    assert "\n\nFirst.\n\n" in system[1]
    assert rest == [
        ("user", "ab"),
        ("system", "Later."),
        ("user", "<tool_response>\n4\n</tool_response>"),
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "narrator", "content": "x"},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "user", "content": 3},
    ],
)
def test_what_it_cannot_render_it_refuses(message: dict[str, Any]) -> None:
    with pytest.raises(TemplateError):
        fixed([USER, message])


def test_spans_are_what_the_model_writes() -> None:
    chat = [USER, {"role": "assistant", "content": "A"}, USER, {"role": "assistant", "content": "B"}]
    result = render_with_spans("fixed", chat, enable_thinking=False, date=DAY)
    assert [result.text[start:end] for start, end in result.generation_spans] == [
        "A<|im_end|>",
        "B<|im_end|>",
    ]
    assert result.text == fixed(chat, enable_thinking=False)


def test_the_template_is_our_own(deployed_chat_template: str) -> None:
    """Only the model's own words, which are strings of the template, occur in both."""
    ours = {line.strip() for line in fixed_template().splitlines() if len(line.strip()) > 40}
    theirs = {line.strip() for line in deployed_chat_template.splitlines()}
    assert not ours & theirs
