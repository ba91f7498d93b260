"""What an answer may look like in; the grammar that says so, as llguidance's documents (Lark in JSON), out.

The tags of thoughts and calls may be tokens of their own or plain text: each is accepted in both forms, for
what reads the answer (`text/parser.py`) goes by the text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Thinking = Literal["none", "open", "optional"]
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
MAX_CALLS = 32
"""Calls in one answer, where several are allowed."""
_BLANKS = r"/[ \t\r\n]{1,8}/"


def answer_grammar(body: Sequence[str], thinking: Thinking, id_of_tag: Mapping[str, int]) -> str:
    """The rules of an answer: its thoughts, if any, and then the rule `body`, which the list `body` defines.

    thinking: "none": the body alone; "open": the thoughts are open; "optional": the model may open them.
    id_of_tag: the ids of the tags that are tokens of their own.
    """
    tag = _tag_writer(id_of_tag)
    start = {
        "none": "body",
        "open": "thoughts gap body",
        "optional": f"({tag('<think>')} thoughts gap)? body",
    }
    rules = [f"start: {start[thinking]}"]
    if thinking != "none":
        # A call that is opened among the thoughts would be read as a call: there can be none.
        text = text_without("</think>", "<tool_call>")
        rules += [
            f"thoughts: {_up_to('THOUGHTS', 'ALL_THOUGHTS', '</think>', id_of_tag)}",
            f"THOUGHTS: /{text}/",
            f"ALL_THOUGHTS: /{text}{_in_regex('</think>')}/",
            "gap: GAP?",
            f"GAP: {_BLANKS}",
        ]
    return "\n".join([*rules, *body]) + "\n"


def calls_rules(
    *, required: bool, parallel: bool, id_of_tag: Mapping[str, int], otherwise: Sequence[str] = ()
) -> list[str]:
    """The rule `body` for tool calls in SmolLM3's form; each call's JSON is the grammar `call`.

    Not `required`: text comes before the calls, or in their place. `otherwise` are rules that define
    `answer`, which may then come in place of the calls.
    """
    tag = _tag_writer(id_of_tag)
    more = f" (SEPARATOR? {tag('<tool_call>')} rest){{0,{MAX_CALLS - 1}}} SEPARATOR?" if parallel else ""
    rules = [f'rest: "\\n" @call "\\n" {tag("</tool_call>")}', f"SEPARATOR: {_BLANKS}"]
    if required or otherwise:
        return [
            f"body: {'answer | ' if otherwise else ''}{tag('<tool_call>')} rest{more}",
            *rules,
            *otherwise,
        ]
    text = text_without("<tool_call>")
    opening = _up_to("TEXT", "OPENING", "<tool_call>", id_of_tag)
    return [
        f"body: TEXT? | ({opening}) rest{more}",
        f"TEXT: /{text}/",
        f"OPENING: /{text}{_in_regex('<tool_call>')}/",
        *rules,
    ]


def with_grammars(start: str, **others: Mapping[str, Any]) -> str:
    """The document of a grammar and of those it names with `@`, each as `lark_grammar` or `json_schema`."""
    named = [{"name": name, **grammar} for name, grammar in others.items()]
    return json.dumps({"grammars": [{"lark_grammar": start}, *named]})


def text_without(*tags: str) -> str:
    """A regex for any text in which none of the tags is complete; tags begin with `<` and have no other.

    Written as alternatives, not as a negation: so the masks of whole runs of tokens can be taken from tables.
    """
    following: dict[str, Any] = {}
    for tag in tags:
        node = following
        for char in tag[1:]:
            node = node.setdefault(char, {})
    begun = f"(<{_begun(following)})*"
    return f"([^<]|{begun}<{_broken_off(following)})*{begun}"


def _begun(following: Mapping[str, Any]) -> str:
    """The rest of a tag, up to but without its end."""
    ways = [_in_regex(char) + _begun(then) for char, then in following.items() if then]
    return f"({'|'.join(ways)})?" if ways else ""


def _broken_off(following: Mapping[str, Any]) -> str:
    """The beginning of a tag's rest and then a character that is not the tag's."""
    other = "[^<" + "".join(map(_in_regex, following)) + "]"
    ways = [_in_regex(char) + _broken_off(then) for char, then in following.items() if then]
    return "(" + "|".join([other, *ways]) + ")"


def _in_regex(text: str) -> str:
    return text.replace("/", r"\/")


def _tag_writer(id_of_tag: Mapping[str, int]) -> Callable[[str], str]:
    """A function that writes a tag as an expression: its text, or its own token."""
    return lambda tag: f'("{tag}" | <[{id_of_tag[tag]}]>)' if tag in id_of_tag else f'"{tag}"'


def _up_to(text: str, text_and_tag: str, tag: str, id_of_tag: Mapping[str, int]) -> str:
    """An expression for text and then the tag: one lexeme, or text and the tag's token."""
    return f"{text_and_tag} | {text}? <[{id_of_tag[tag]}]>" if tag in id_of_tag else text_and_tag
