"""Answers held to grammars: known answers, random walks that the parser must read, forms of the tags."""

import json
import random
import re
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from smollm3.errors import ParameterError
from smollm3.text.grammar import MAX_KEPT_CHARACTERS, MAX_KEPT_GRAMMARS, GrammarCompiler
from smollm3.text.parser import parse
from smollm3.text.tokenizer import Tokenizer
from tests.text.grammar_walks import allowed_ids, follow, random_answer, trained_tokenizer, valid

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "flat": CITY,
    "open": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "anything": {},
    "list": {"type": "array", "items": {"enum": ["a", 1, None, {"b": [True]}]}, "minItems": 2, "maxItems": 3},
    "choice": {"anyOf": [{"type": "number", "minimum": -2, "exclusiveMaximum": 7.5}, {"const": 'say "x"\n'}]},
    "exclusive": {"oneOf": [{"type": "boolean"}, {"type": "null"}, {"type": "string", "pattern": "^[ab]+$"}]},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "integer"}], "items": False},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"value": {"type": "integer"}, "left": {"$ref": "#/$defs/node"}},
                "required": ["value"],
                "additionalProperties": False,
            }
        },
    },
    "merged": {
        "allOf": [CITY | {"additionalProperties": True}, {"type": "object", "required": ["days"]}],
        "title": "t",
    },
    "patterned": {
        "type": "object",
        "patternProperties": {"^x-": {"type": "integer"}},
        "additionalProperties": False,
        "minProperties": 1,
    },
    "steps": {"type": "integer", "multipleOf": 5, "minimum": 3, "maximum": 5000},
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "d", "parameters": CITY}},
    {"name": "note", "parameters": SCHEMAS["tree"]},
    {"name": "store", "parameters": SCHEMAS["open"]},
    {"name": "now"},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CALL_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def parameters_of(name: str) -> Any:
    functions: list[Any] = [tool.get("function", tool) for tool in TOOLS]
    return next(
        function.get("parameters", {"maxProperties": 0}) for function in functions if function["name"] == name
    )


class Kit:
    """A tokenizer with a compiler for a model whose vocabulary is padded."""

    def __init__(self, tokenizer: Tokenizer, eos: tuple[int, ...]) -> None:
        self.tokenizer, self.eos = tokenizer, eos
        self.vocab_size = len(tokenizer) + 70
        self.compiler = GrammarCompiler(tokenizer, self.vocab_size, eos)

    def forms(self, text: str) -> list[list[int]]:
        """The text with its tags as tokens of their own, and as text."""
        return [self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.encode_plain(text)]

    def accepts(self, make: Any, text: str) -> bool:
        """Whether the whole text is an answer, in both forms alike."""
        results = []
        for ids in self.forms(text):
            constraint = make()
            results.append(
                follow(constraint, ids) and (constraint.ended or follow(constraint, self.eos[-1:]))
            )
        assert results[0] == results[1]
        return results[0]


@pytest.fixture(scope="module")
def kit_135m(small_model: Any) -> Kit:
    from smollm3.tokenization import SmolLM3Tokenizer

    return Kit(SmolLM3Tokenizer.from_pretrained(small_model), (0, 2))


@pytest.fixture(scope="module", params=["135m", "tags", "special tags"])
def kit(request: pytest.FixtureRequest) -> Kit:
    if request.param == "135m":
        found: Kit = request.getfixturevalue("kit_135m")
        return found
    tokenizer = trained_tokenizer(special_tags=request.param == "special tags")
    ids = [tokenizer.token_to_id(token) for token in ("<|end_of_text|>", "<|im_end|>")]
    return Kit(tokenizer, (ids[0] or 0, ids[1] or 0))


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_answers_match_their_schema(kit: Kit, name: str) -> None:
    rng, done = random.Random(name), 0
    for _ in range(12):
        text = random_answer(kit.compiler.json_schema(SCHEMAS[name]), kit.tokenizer, kit.eos, rng)
        if text is not None:
            done += 1
            assert valid(json.loads(text), SCHEMAS[name]), text
    assert done >= 6


@pytest.mark.parametrize("thinking", ["none", "open", "optional"])
@pytest.mark.parametrize("choice", ["required", "auto", "weather"])
@pytest.mark.parametrize("parallel", [True, False])
def test_what_the_parser_reads_are_calls_that_match(
    kit: Kit, choice: str, parallel: bool, thinking: Any
) -> None:
    rng, done, num_calls = random.Random(f"{choice} {parallel} {thinking}"), 0, 0
    for _ in range(8):
        constraint = kit.compiler.tool_calls(TOOLS, choice, parallel, thinking=thinking)
        text = random_answer(constraint, kit.tokenizer, kit.eos, rng)
        if text is None:
            continue
        done += 1
        parsed = parse(text, thinking_open=thinking == "open", code=False)
        if choice != "auto":
            assert parsed.tool_calls
            assert parsed.content == ""
        assert parallel or len(parsed.tool_calls) <= 1
        for call in parsed.tool_calls:
            num_calls += 1
            assert call.closed
            assert choice in ("required", "auto", call.name)
            assert valid(json.loads(call.arguments), parameters_of(call.name)), text
    assert done >= 4
    assert num_calls or choice == "auto"


def test_known_answers(kit: Kit) -> None:
    compiler = kit.compiler
    for make, yes, no in [
        (compiler.json_object, '{"a": [1, {"b": null}], "c": "x"}', "[1]"),
        (compiler.json_object, "{\n    \"a\": 1\n}", '{"a": 1e999}'),
        (lambda: compiler.json_schema(CITY), '{"city": "Köln", "days": 3}', '{"city": "Köln", "days": 0}'),
        (lambda: compiler.json_schema(CITY), '{"city":"K"}', '{"city": "K", "c": 1}'),
        (lambda: compiler.json_schema(SCHEMAS["open"]), '{"a": 1, "b": "x"}', '{"\\u0061": "x"}'),
        (lambda: compiler.regex(r"^[a-z]+/\d{2}\$?$"), "ab/12$", "ab/1"),
        (lambda: compiler.lark('start: "a" start "b" | "c"'), "aacbb", "aacb"),
        (lambda: compiler.tool_calls(TOOLS), CALL, CALL.replace("Paris", "P" * 31)),
        (lambda: compiler.tool_calls(TOOLS), f"{CALL}\n{CALL}", f"{CALL} and"),
        (lambda: compiler.tool_calls(TOOLS, parallel=False), CALL, CALL + CALL),
        (lambda: compiler.tool_calls(TOOLS, "now"), CALL_NOW, CALL),
        (lambda: compiler.tool_calls(TOOLS, "auto"), f"Let me see < 3.\n{CALL}\n", "See <tool_call> here"),
        (lambda: compiler.tool_calls(TOOLS, "auto"), "Just <b>words</b>.", CALL.replace("weather", "hail")),
    ]:  # fmt: skip
        assert kit.accepts(make, yes), yes
        assert not kit.accepts(make, no), no


@pytest.mark.parametrize("text", ["<think>Hm, <b> </thin king.\n</think>\n\n", "<think></think>", ""])
def test_thoughts_come_before_the_answer(kit: Kit, text: str) -> None:
    for body, make in [
        ('{"city": "X"}', lambda mode: kit.compiler.json_schema(CITY, thinking=mode)),
        ("no", lambda mode: kit.compiler.regex("yes|no", thinking=mode)),
        ("aca", lambda mode: kit.compiler.lark('start: "a" "c" "a"', thinking=mode)),
        (CALL, lambda mode: kit.compiler.tool_calls(TOOLS, thinking=mode)),
        ("Well.", lambda mode: kit.compiler.tool_calls(TOOLS, "auto", thinking=mode)),
    ]:
        assert kit.accepts(partial(make, "optional"), text + body)
        assert kit.accepts(partial(make, "open"), text.removeprefix("<think>") + body) == bool(text)
        if body != "Well.":  # words may spell a tag
            assert kit.accepts(partial(make, "none"), text + body) == (not text)
        assert parse(text + body).reasoning == ("Hm, <b> </thin king." if "Hm" in text else "")


def test_a_call_cannot_begin_among_thoughts(kit: Kit) -> None:
    assert not kit.accepts(
        lambda: kit.compiler.json_schema(CITY, thinking="open"), f'I {CALL}</think>{{"city": "X"}}'
    )


def test_tags_inside_of_strings_are_read_back(kit_135m: Kit) -> None:
    tricky = "</tool_call> <tool_call> </think> <think> ' \\\" </tool_call>"
    text = CALL.replace("Paris", tricky[:28])
    assert kit_135m.accepts(lambda: kit_135m.compiler.tool_calls(TOOLS), text)
    (call,) = parse(text).tool_calls
    assert json.loads(call.arguments) == {"city": tricky[:28]}
    store = CALL.replace("weather", "store").replace("Paris", tricky)
    assert kit_135m.accepts(lambda: kit_135m.compiler.tool_calls(TOOLS), f"{store}\n{store}")
    assert [json.loads(call.arguments)["city"] for call in parse(f"{store}\n{store}").tool_calls] == [
        json.loads(f'"{tricky}"')
    ] * 2


def test_masks_forbid_special_and_padded_ids_and_allow_each_eos_at_the_end(kit: Kit) -> None:
    constraint = kit.compiler.json_schema({"type": "string"})
    assert constraint.mask().dtype == np.uint32
    assert len(constraint.mask()) == (kit.vocab_size + 31) // 32
    inside = constraint.fork()
    inside.accept(kit.tokenizer.encode('"', add_special_tokens=False)[0])
    ids = set(allowed_ids(inside.mask()).tolist())
    assert max(ids) < len(kit.tokenizer)
    assert not ids & set(kit.tokenizer.special_ids)
    number = kit.compiler.json_schema({"type": "integer"})
    assert follow(number, kit.tokenizer.encode("17", add_special_tokens=False))
    assert set(kit.eos) <= set(allowed_ids(number.mask()).tolist())
    assert not number.ended
    number.accept(kit.eos[1])
    assert number.ended


def test_forks_go_their_own_ways(kit: Kit) -> None:
    one = kit.compiler.regex("ab|cd")
    other = one.fork()
    assert follow(one, kit.forms("ab")[0])
    assert follow(other, kit.forms("cd")[0])
    assert one.ended
    assert one.fork().ended
    with pytest.raises(ParameterError, match="not allowed by the grammar"):
        kit.compiler.regex("ab|cd").accept(kit.forms("x")[0][0])


def test_bytes_of_tokens_are_the_detokenizers(kit: Kit) -> None:
    library = kit.compiler._library
    for token_id in range(len(kit.tokenizer)):
        data = kit.tokenizer.token_bytes(token_id)
        if b"\xff" not in data:
            assert library._tokenizer.decode_bytes([token_id]) == data


def test_grammars_are_kept_within_bounds(kit: Kit) -> None:
    """Case 29 of the security cases: unique schemas neither pile up nor touch the disk."""
    for idx in range(3 * MAX_KEPT_GRAMMARS):
        kit.compiler.json_schema({"const": idx})
    assert len(kit.compiler._kept) == MAX_KEPT_GRAMMARS
    began = time.thread_time()
    for _ in range(20):
        kit.compiler.json_schema({"const": 3 * MAX_KEPT_GRAMMARS - 1})
    assert time.thread_time() - began < 0.2


def test_large_grammars_are_kept_within_bounds(kit: Kit) -> None:
    """Compiled, they take 20 to 50 times their source: an enum of 300 kB took 6 MB, and 64 were kept."""
    compiler = GrammarCompiler(kit.tokenizer, kit.vocab_size, kit.eos)
    compiler.json_object()
    for idx in range(6):
        compiler.json_schema({"enum": [f"{idx} {value} {'x' * 60}" for value in range(4500)]})
        compiler.json_schema({"const": "often asked for"})
    assert 2 <= len(compiler._kept) < 6
    assert any("often asked for" in source for source in compiler._kept)
    assert sum(map(len, compiler._kept)) <= MAX_KEPT_CHARACTERS
    for idx in range(3 * MAX_KEPT_GRAMMARS):  # what is dropped no longer counts
        compiler.json_schema({"const": idx})
    assert len(compiler._kept) == MAX_KEPT_GRAMMARS


def test_wrong_arguments(kit: Kit) -> None:
    for call, problem in [
        (lambda: GrammarCompiler(kit.tokenizer, 1000, ()), "give an id below"),
        (lambda: GrammarCompiler(kit.tokenizer, 1000, (1000,)), "below the vocabulary"),
        (lambda: kit.compiler.regex("a", thinking="yes"), "thinking='yes'"),  # type: ignore[arg-type]
        (lambda: kit.compiler.tool_calls([]), "non-empty"),
        (lambda: kit.compiler.tool_calls([{"name": "f"}], "g"), "'g' is none of the tools f"),
        (lambda: kit.compiler.tool_calls([{"name": "f"}, {"name": "f"}]), r"tools\[1\].*twice"),
        (lambda: kit.compiler.tool_calls([{"name": "f", "parameters": {"type": "null"}}]), "parameters/type"),
        (lambda: kit.compiler.tool_calls([{"name": "f", "parameters": []}]), r"tools\[0\].parameters"),
        (lambda: kit.compiler.tool_calls([{"type": "web_search"}]), "web_search"),
        (lambda: kit.compiler.tool_calls([{"name": ""}]), "a name"),
    ]:  # fmt: skip
        with pytest.raises(ParameterError, match=problem) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_without_the_package_one_line_says_so() -> None:
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from smollm3.errors import MissingDependencyError\n"
        "from smollm3.text.grammar import GrammarCompiler\n"
        "try: GrammarCompiler(None, 10, [1])\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert re.fullmatch(r"structured output needs .*pip install 'smollm3\[serve\]'\n", done.stdout)
