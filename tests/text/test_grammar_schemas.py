"""Schemas and patterns of strangers: a constraint or one clear line, soon; nothing hangs or piles up."""

import json
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smollm3.errors import ParameterError
from smollm3.text.grammar import GrammarCompiler
from smollm3.text.grammar_keywords import ANNOTATIONS, TYPES
from smollm3.text.tokenizer import Tokenizer
from tests.text.grammar_walks import allowed_ids, random_answer, trained_tokenizer, valid


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return trained_tokenizer(special_tags=True)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    made = GrammarCompiler(tokenizer, len(tokenizer), [tokenizer.eos_token_id or 0])
    made.json_object()
    return made


def soon(make: Callable[[], Any], *, steps: int = 12, seed: int = 0) -> Any:
    """Make a constraint and take some steps by chance: all of it within a second, with no error but ours."""
    began = time.thread_time()
    rng, made, message = random.Random(seed), None, None
    try:
        made = make()
        walker = made.fork()
        for _ in range(steps):
            walker.accept(int(rng.choice(allowed_ids(walker.mask()))))
            if walker.ended:
                break
    except ParameterError as error:
        message = str(error)
    assert time.thread_time() - began < 1.0
    assert message is None or re.fullmatch(".{1,1000}", message)
    return made


def refusal(make: Callable[[], Any]) -> str:
    with pytest.raises(ParameterError) as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"not": {}}, "schema#/not: the keyword 'not' is not supported"),
        ({"properties": {"a": {"uniqueItems": True}}}, "schema#/properties/a/uniqueItems: the keyword"),
        ({"properties": {"a/b": {"minimun": 1}}}, "schema#/properties/a~1b/minimun: the keyword 'minimun'"),
        ({"nullable": True}, "add 'null' to type"),
        ({"x-guidance": {}, "propertyNames": {}}, "schema#/propertyNames"),
        ({"type": "foo"}, "schema#/type: 'foo' is no type"),
        ({"type": ["string", 5]}, "schema#/type"),
        ({"type": "string", "pattern": "("}, "schema#/pattern: unclosed group"),
        ({"items": {"type": "string", "pattern": "(?=a)"}}, "schema#/items/pattern: look-around"),
        ({"patternProperties": {"[": {}}}, "schema#/patternProperties: unclosed character class"),
        ({"pattern": 5}, "schema#/pattern: a pattern is text"),
        ({"pattern": "a\\"}, "schema#/pattern: the pattern ends in a lone backslash"),
        ({"format": "regex"}, "schema#/format: 'regex' is no format"),
        ({"items": [{}]}, "prefixItems"),
        ({"enum": []}, "schema#/enum: give a non-empty list"),
        ({"const": 2**60 + 1}, "schema#/const"),
        ({"enum": [{"a": 1e300}]}, "schema#/enum"),
        ({"minimum": 1801439850948199.25}, "schema#/minimum"),
        ({"enum": ["a", {"b\x07": 1}]}, "schema#/enum"),
        ({"pattern": "a\\x07"}, "schema#/pattern"),
        ({"pattern": "[a\x7f]"}, "schema#/pattern"),
        ({"patternProperties": {"\\v": {}}}, "schema#/patternProperties"),
        ({"required": ["a", "a"]}, "schema#/required: a name comes twice"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum (3) is greater than maximum (2)"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "use anyOf"),
        ({"minLength": -1}, "schema#/minLength"),
        ({"minProperties": 2}, "schema#/minProperties: 2 is over 1"),
        (False, "allows no value"),
        (5, "a schema is an object"),
        ({"const": float("nan")}, "nan is no JSON number"),
        ({"const": "\ud800"}, "lone surrogate"),
        ({"const": {1: 2}}, "names in JSON are text"),
        ({"const": (1,)}, "a tuple is no JSON value"),
    ],
)  # fmt: skip
def test_refusals_name_the_keyword_and_its_place(
    compiler: GrammarCompiler, schema: Any, problem: str
) -> None:
    message = refusal(lambda: compiler.json_schema(schema))
    assert problem in message
    assert message.startswith("schema")


def deep(levels: int) -> Any:
    schema: Any = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def chain(length: int, link: Callable[[str], Any]) -> Any:
    """Definitions that lead from one to the next."""
    parts = {f"a{idx}": link(f"#/$defs/a{idx + 1}") for idx in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**parts, f"a{length}": {"type": "string"}}}


MERGED = {"anyOf": [{"type": "object", "properties": {f"k{idx}": {"type": "string"}}} for idx in range(3)]}
BOMBS: dict[str, Any] = {
    "deep": deep(100),
    "very deep": deep(5_000),
    "huge enum": {"enum": list(range(100_000))},
    "long enum": {"enum": ["x" * 1_000 + str(idx) for idx in range(1_000)]},
    "minItems": {"type": "array", "minItems": 10**9},
    "maxItems": {"type": "array", "maxItems": 10**400},
    "minLength": {"type": "string", "minLength": 10**9},
    "maxLength": {"type": "string", "maxLength": 2**31},
    "properties": {"properties": {f"p{idx}": {} for idx in range(5_000)}},
    "optional properties": {"properties": {f"p{idx}": {} for idx in range(400)}},
    "self": {"$ref": "#"},
    "circle": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}},
    },
    "endless": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "endless list": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "remote": {"$ref": "http://127.0.0.1:1/schema.json"},
    "file": {"$ref": "file:///etc/passwd"},
    "nowhere": {"$ref": "#/$defs/none"},
    "repetition": {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
    "pattern": {"type": "string", "pattern": "a" * 100_000},
    "nested pattern": {"type": "string", "pattern": "(" * 1_000 + ")" * 1_000},
    "exponential choice": {"allOf": [MERGED] * 12},
    "steps": {"allOf": [{"type": "integer", "multipleOf": step} for step in (97, 89)]},
    "step": {"type": "integer", "multipleOf": 99_991},
    "text": {"title": "x" * 10**6},
}
HARD: dict[str, Any] = {
    "chain": chain(400, lambda ref: {"$ref": ref}),
    "chain of objects": chain(300, lambda ref: {"type": "object", "properties": {"x": {"$ref": ref}}}),
    "chain of pairs": chain(
        200, lambda ref: {"type": "array", "prefixItems": [{"$ref": ref}] * 2, "minItems": 2}
    ),
    "exponential merge": chain(40, lambda ref: {"allOf": [{"$ref": ref}, {"$ref": ref}], "minLength": 1}),
    "states": {"type": "string", "pattern": "^(a|b)*a(a|b){18}$"},
    "counters": {"type": "string", "pattern": ".*a.{500}b.{500}"},
    "choices": {"type": "array", "items": {"anyOf": [{"required": [f"a{idx}"]} for idx in range(300)]}},
    "recursion": {"$defs": {"n": {"anyOf": [{"items": {"$ref": "#/$defs/n"}}] * 20}}, "$ref": "#/$defs/n"},
    "values": {"enum": [f"value {idx}" for idx in range(5_000)]},
    "long": {"type": "string", "minLength": 10_000, "maxLength": 100_000},
    "names": {"type": "object", "required": [f"name {idx}" for idx in range(3_000)]},
    "numbers": {
        "properties": {
            f"n{idx}": {"type": "number", "minimum": -idx - 0.1234, "maximum": idx * 1e9}
            for idx in range(300)
        }
    },
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(compiler: GrammarCompiler, name: str) -> None:
    """Case 30 of the security cases."""
    assert soon(lambda: compiler.json_schema(BOMBS[name])) is None
    assert soon(lambda: compiler.tool_calls([{"name": "f", "parameters": BOMBS[name]}])) is None


@pytest.mark.parametrize("name", HARD)
def test_what_is_hard_stays_within_limits(compiler: GrammarCompiler, name: str) -> None:
    assert soon(lambda: compiler.json_schema(HARD[name]), steps=30) is not None


CHAINS = """
import json, sys, threading
from tests.text.grammar_walks import trained_tokenizer
from tests.text.test_grammar_schemas import HARD, chain
from smollm3.text.grammar import GrammarCompiler
tokenizer = trained_tokenizer(special_tags=True)
compiler = GrammarCompiler(tokenizer, len(tokenizer), [0])
def compile_all():
    for name in HARD:
        if name.startswith("chain"):
            compiler.json_schema(HARD[name]).mask()
    link = lambda ref: {"type": "object", "properties": {"x": {"$ref": ref}}, "required": ["x"]}
    compiler.json_schema(chain(490, link)).mask()
    print("done")
threading.stack_size(512 * 1024)
thread = threading.Thread(target=compile_all)
thread.start()
thread.join()
"""


def test_chains_of_references_overflow_no_stack() -> None:
    """The compiler recurses: in a thread of 512 KB, macOS's usual size, it would take the process with it."""
    done = subprocess.run([sys.executable, "-c", CHAINS], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


def test_memory_stays_within_limits(compiler: GrammarCompiler) -> None:
    """Case 29 of the security cases, and patterns that make as many states as they may."""
    for idx in range(200):
        soon(lambda idx=idx: compiler.json_schema({"enum": [f"{idx} {value}" for value in range(100)]}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for idx in range(2_000):
        soon(lambda idx=idx: compiler.json_schema({"type": "string", "pattern": f"a.{{{idx}}}b"}), steps=2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


KEYWORDS = [
    "type", "properties", "items", "prefixItems", "required", "enum", "const", "anyOf", "oneOf", "allOf",
    "$ref", "$defs", "pattern", "patternProperties", "additionalProperties", "minItems", "maxItems",
    "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minProperties", "maxProperties", "format", "not", "uniqueItems", "x-guidance", "definitions",
    "title", "default", "$id", "if",
]  # fmt: skip
WORDS = st.sampled_from(
    ["a", "b", "#", "#/$defs/a", "#/properties/a", "^a+$", "(a|b){2,9}", ".*", "date", *TYPES]
)
TYPE = st.sampled_from(TYPES)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.integers(), st.floats(), WORDS, st.text(max_size=8)
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(KEYWORDS), st.text(max_size=4)), inner, max_size=5),
    ),
    max_leaves=30,
)


def a_schema(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects that are nearly schemas, so that more of them get as far as the compiler."""
    count, number = st.integers(0, 12), st.one_of(st.integers(-50, 50), st.floats(-1e3, 1e3))
    schemas, named = (
        st.lists(inner, min_size=1, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    )
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(TYPE, st.lists(TYPE, min_size=1, unique=True)),
            "properties": named,
            "patternProperties": st.dictionaries(st.sampled_from(["^x", "y$"]), inner, max_size=2),
            "required": st.lists(st.sampled_from("abc"), unique=True),
            **dict.fromkeys(("additionalProperties", "items"), inner),
            **dict.fromkeys(("prefixItems", "anyOf", "oneOf", "allOf"), schemas),
            **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength", "maxProperties"), count),
            **dict.fromkeys(("minimum", "exclusiveMaximum"), number),
            "pattern": st.sampled_from(["^a*$", "b", "[^a]{3,}", "\\d+", "é|ü", "[\\x00-\\x1f]", "^\\\\x07"]),
            "enum": st.lists(SCALARS, min_size=1, max_size=4),
            "const": SCALARS,
            "multipleOf": st.sampled_from([1, 5, 0.5, 0.01]),
            "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b"]),
            "format": st.sampled_from(["date", "uuid", "email"]),
        },
    )


LARK = 'start: ab"|/()[]{}*+?~&,.%\\\n<>@0123json'
NEARLY = st.recursive(st.one_of(st.just({}), st.booleans()), a_schema, max_leaves=12)
FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.one_of(ANY_JSON, st.dictionaries(st.sampled_from(KEYWORDS), ANY_JSON, max_size=4)))
def test_any_json_is_a_constraint_or_an_error(compiler: GrammarCompiler, schema: Any) -> None:
    """Cases 26 and 27 of the security cases: as a schema, as a tool's parameters and as a tool."""
    soon(lambda: compiler.json_schema(schema))
    soon(lambda: compiler.tool_calls([{"name": "f", "parameters": schema}], "auto"))
    soon(lambda: compiler.tool_calls([schema]))


@FUZZ
@given(NEARLY, st.dictionaries(st.sampled_from("ab"), NEARLY, max_size=2), st.integers(0, 99))
def test_answers_match_any_schema(
    compiler: GrammarCompiler, tokenizer: Tokenizer, schema: Any, definitions: Any, seed: int
) -> None:
    if isinstance(schema, dict):
        schema = {**schema, "$defs": definitions}
    made = soon(lambda: compiler.json_schema(schema), seed=seed)
    if made is not None:
        eos = [tokenizer.eos_token_id or 0]
        text = random_answer(made, tokenizer, eos, random.Random(seed), max_ids=120)
        assert text is None or valid(json.loads(text), schema), text


@FUZZ
@given(st.one_of(st.text(max_size=40), st.text("ab(|)[]{}*+?,.^$\\/-d019<>=!:", max_size=40)))
def test_any_pattern_is_a_constraint_or_an_error(compiler: GrammarCompiler, pattern: str) -> None:
    soon(lambda: compiler.regex(pattern))
    soon(lambda: compiler.json_schema({"type": "string", "pattern": pattern}))


@FUZZ
@given(
    st.one_of(
        st.text(max_size=60),
        st.text(LARK, max_size=80).map("start: ".__add__),
    )
)
def test_any_lark_is_a_constraint_or_an_error(compiler: GrammarCompiler, source: str) -> None:
    soon(lambda: compiler.lark(source))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "give the source"),
        ("start: foo", "unknown name"),
        ("start: a\na: /(/", "line 2"),
        ('start: "a"\nb: %json {"not": {}}', "grammar, line 2: %json#/not"),
        ("start: %json x", "no JSON schema follows"),
        ("%llguidance {}\nstart: /a/", "%llguidance is not supported"),
        ('start[stop="x"]: /a*/', "the option stop"),
        ("start[max_tokens=3]: /a*/", "the option max_tokens"),
        ('start: "a"{1,100000}', "a repetition is over"),
        ("start: start", "no text"),
        ("start: " + "(" * 100, "nest over"),
        ("x" * 10**6, "characters are over"),
        ("start: @inner", "grammar"),
        ('start: "\ud800"', "lone surrogate"),
    ],
)  # fmt: skip
def test_refused_grammars(compiler: GrammarCompiler, source: str, problem: str) -> None:
    message = refusal(lambda: compiler.lark(source))
    assert problem in message
    assert message.startswith("grammar")


def test_annotations_restrict_nothing(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = {**dict.fromkeys(ANNOTATIONS, "any"), "x-order": 1, "uniqueItems": False, "const": [1]}
    walked = compiler.json_schema(schema)
    for token_id in tokenizer.encode("[1]", add_special_tokens=False):
        walked.accept(token_id)
    assert walked.ended
