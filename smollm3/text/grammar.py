"""JSON schemas, regexes, Lark grammars and tools in; constraints that hold an answer to them, id by id, out.

`GrammarCompiler` is made once per model and shared by threads; what it returns belongs to one request. Knows
token ids and text, no model and no engine.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smollm3.errors import ParameterError
from smollm3.text.grammar_lark import check_lark
from smollm3.text.grammar_library import GrammarLibrary, Matcher, llguidance
from smollm3.text.grammar_patterns import check_pattern
from smollm3.text.grammar_schema import document, ready_schema
from smollm3.text.grammar_source import Thinking, answer_grammar, calls_rules, with_grammars
from smollm3.text.grammar_tools import call_schema
from smollm3.text.tokenizer import Tokenizer

MAX_KEPT_GRAMMARS = 64
# Of the sources of all that are kept: compiled, one takes 20 to 50 times its source, and some 0.2 MB.
MAX_KEPT_CHARACTERS = 1_000_000
_BODY = ["body: @inner"]


class Grammar:
    """A constraint: which ids may come next in one answer. Copies from `fork` go their own ways."""

    def __init__(self, matcher: Matcher, eos_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos_token_ids = eos_token_ids
        self._ended = False

    def mask(self) -> NDArray[np.uint32]:
        """Bits [ceil(vocab_size / 32)]: bit i of word i // 32, from the low end, allows id i.

        Raises ParameterError where the grammar becomes too complex to follow.
        """
        return self._matcher.mask()

    def accept(self, token_id: int) -> None:
        """Take in the id that was chosen. Raises ParameterError for one that the mask forbids; see `mask`."""
        self._matcher.accept(token_id)
        self._ended = token_id in self._eos_token_ids or self._matcher.ended

    @property
    def ended(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return self._ended

    def fork(self) -> "Grammar":
        fork = Grammar(self._matcher.copy(), self._eos_token_ids)
        fork._ended = self._ended
        return fork


class GrammarCompiler:
    """Makes constraints. `thinking` of each: "none": the answer begins at once; "open": the prompt ended
    inside `<think>`; "optional": the model may open it first. Thoughts are free, and end with `</think>`.

    Each method raises a ParameterError of one line for what is malformed, unsupported or too large to compile
    in good time.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        """vocab_size: the model's, which may be padded. eos_token_ids: each ends an answer; one beyond the
        vocabulary cannot come.

        Raises MissingDependencyError without the package llguidance.
        """
        eos = frozenset(token_id for token_id in eos_token_ids if 0 <= token_id < vocab_size)
        if not eos:
            raise ParameterError(
                f"eos_token_ids={list(eos_token_ids)}: give an id below the vocabulary's size {vocab_size}"
            )
        llguidance()
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, eos
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Matcher] = OrderedDict()  # by source, the newest last
        self._num_kept_characters = 0

    def json_object(self, *, thinking: Thinking = "none") -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"}, thinking=thinking)

    def json_schema(self, schema: Any, *, thinking: Thinking = "none", name: str = "schema") -> Grammar:
        """JSON that a schema allows; `name` is what errors call the schema."""
        patterns: dict[str, str] = {}
        grammar = {"json_schema": document(ready_schema(schema, name, patterns))}
        return self._compile(name, thinking, lambda library: _BODY, patterns, inner=grammar)

    def regex(self, pattern: str, *, thinking: Thinking = "none") -> Grammar:
        """Text that a regex matches as a whole: Rust's syntax, no look-around, ASCII `\\d`, `\\w`, `\\s`."""
        core = _without_anchors(check_pattern(pattern, "regex"))
        if not core:
            raise ParameterError("regex: the pattern is empty, so no text can match it: give one")
        return self._compile(
            "regex", thinking, lambda library: ["body: PATTERN", library.regex_rule(core, "PATTERN")], {}
        )

    def lark(self, source: str, *, thinking: Thinking = "none") -> Grammar:
        """Text of a context-free grammar in llguidance's Lark; it begins with the rule `start`."""
        check_lark(source)
        return self._compile("grammar", thinking, lambda library: _BODY, {}, inner={"lark_grammar": source})

    def tool_calls(
        self,
        tools: Sequence[Any],
        choice: str = "required",
        parallel: bool = True,
        *,
        thinking: Thinking = "none",
    ) -> Grammar:
        """Calls of tools: `<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>`.

        choice: "required": nothing but calls; "auto": text, which calls may follow; else the name of the one
        tool to call. parallel: several calls in one answer.
        """
        patterns: dict[str, str] = {}
        grammar = {"json_schema": document(call_schema(tools, choice, patterns))}
        required = choice != "auto"
        return self._compile(
            "tools",
            thinking,
            lambda library: calls_rules(required=required, parallel=parallel, id_of_tag=library.id_of_tag),
            patterns,
            call=grammar,
        )

    def tool_calls_or_json(
        self,
        tools: Sequence[Any],
        schema: Any,
        parallel: bool = True,
        *,
        thinking: Thinking = "none",
        name: str = "schema",
    ) -> Grammar:
        """Calls of tools, as `tool_calls` has them, or in their place JSON that a schema allows."""
        patterns: dict[str, str] = {}
        calls = {"json_schema": document(call_schema(tools, "required", patterns))}
        inner = {"json_schema": document(ready_schema(schema, name, patterns))}
        return self._calls_or(name, calls, ["answer: @inner"], parallel, thinking, patterns, inner=inner)

    def tool_calls_or_regex(
        self, tools: Sequence[Any], pattern: str, parallel: bool = True, *, thinking: Thinking = "none"
    ) -> Grammar:
        """Calls of tools, as `tool_calls` has them, or in their place text that a regex matches."""
        core = _without_anchors(check_pattern(pattern, "regex"))
        if not core:
            raise ParameterError("regex: the pattern is empty, so no text can match it: give one")
        patterns: dict[str, str] = {"regex": pattern}
        calls = {"json_schema": document(call_schema(tools, "required", patterns))}
        with self._lock:
            rule = self._library.regex_rule(core, "PATTERN")
        return self._calls_or("regex", calls, ["answer: PATTERN", rule], parallel, thinking, patterns)

    def tool_calls_or_lark(
        self, tools: Sequence[Any], source: str, parallel: bool = True, *, thinking: Thinking = "none"
    ) -> Grammar:
        """Calls of tools, as `tool_calls` has them, or in their place text of a Lark grammar."""
        check_lark(source)
        patterns: dict[str, str] = {}
        calls = {"json_schema": document(call_schema(tools, "required", patterns))}
        inner = {"lark_grammar": source}
        return self._calls_or("grammar", calls, ["answer: @inner"], parallel, thinking, patterns, inner=inner)

    def _calls_or(
        self,
        what: str,
        call: Mapping[str, Any],
        answer: Sequence[str],
        parallel: bool,
        thinking: Thinking,
        patterns: Mapping[str, str],
        **grammars: Mapping[str, Any],
    ) -> Grammar:
        return self._compile(
            what,
            thinking,
            lambda library: calls_rules(
                required=True, parallel=parallel, id_of_tag=library.id_of_tag, otherwise=answer
            ),
            patterns,
            call=call,
            **grammars,
        )

    def _compile(
        self,
        what: str,
        thinking: Thinking,
        rules: Callable[[GrammarLibrary], list[str]],
        patterns: Mapping[str, str],
        **grammars: Mapping[str, Any],
    ) -> Grammar:
        if thinking not in ("none", "open", "optional"):
            raise ParameterError(f"thinking={thinking!r}: choose 'none', 'open' or 'optional'")
        with self._lock:
            library = self._library
        source = with_grammars(answer_grammar(rules(library), thinking, library.id_of_tag), **grammars)
        with self._lock:
            matcher = self._kept.get(source)
            if matcher is not None:
                self._kept.move_to_end(source)
        if matcher is None:
            try:
                matcher = library.matcher(source, free=what == "grammar")
            except ParameterError as error:
                raise ParameterError(f"{_culprit(library, patterns) or what}: {error}") from None
            with self._lock:
                self._keep(source, matcher)
        return Grammar(matcher.copy(), self._eos_token_ids)

    def _keep(self, source: str, matcher: Matcher) -> None:
        """Keep what was compiled, and drop what was asked for longest ago; the lock is held."""
        if source not in self._kept:
            self._num_kept_characters += len(source)
        self._kept[source] = matcher
        while len(self._kept) > MAX_KEPT_GRAMMARS or self._num_kept_characters > MAX_KEPT_CHARACTERS:
            oldest, _ = self._kept.popitem(last=False)
            self._num_kept_characters -= len(oldest)

    @cached_property
    def _library(self) -> GrammarLibrary:
        return GrammarLibrary(self._tokenizer, self._vocab_size, self._eos_token_ids)


def _culprit(library: GrammarLibrary, patterns: Mapping[str, str]) -> str | None:
    """The place of the first pattern that does not compile on its own."""
    for where, pattern in patterns.items():
        if core := _without_anchors(pattern):
            try:
                rule = library.regex_rule(core, "PATTERN")
                library.matcher(with_grammars(f"start: PATTERN\n{rule}\n"), free=False)
            except ParameterError:
                return where
    return None


def _without_anchors(pattern: str) -> str:
    """The whole text is matched anyway."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and not re.search(r"(?<!\\)(\\\\)*\\\$$", pattern):
        pattern = pattern[:-1]
    return pattern
