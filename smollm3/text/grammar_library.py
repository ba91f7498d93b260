"""The llguidance package, imported on first use: a tokenizer and a grammar in, a matcher over token ids out.

The only module that knows the package. Whatever goes wrong in it, a resource limit or a panic too, is a
ParameterError of one line.
"""

import importlib
import re
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smollm3.errors import MissingDependencyError, ParameterError
from smollm3.text.grammar_source import TAGS
from smollm3.text.tokenizer import Tokenizer

# Sets of tokens whose masks are kept ready: what JSON strings and free text, the slowest parts, consist of.
_SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    r'[^"\\\x00-\x1F\x7F<]{1,10}',
    r'[^"\\\x00-\x1F\x7F<]{1,30}',
    r'[^"\\\x00-\x1F\x7F<]+',
    r'[^"\\\x00-\x1F\x7F]+',
    r"[^<]+",
]
_LIMITS = {
    "max_items_in_row": 10_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 200_000,
    "max_lexer_states": 40_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
# A grammar with rules of its own may be ambiguous at every step: 20,000 items took 18 ms, 50,000 took 400 ms.
_FREE_LIMITS = {**_LIMITS, "max_items_in_row": 500, "step_max_items": 20_000}

_DEEP_STACK = 64 * 2**20
_STACK_SIZE = threading.Lock()
_PLACE = re.compile(r"(?:at )?(\d+)\(\d+\): ")
_BETTER = {
    "^oneOf constraints": "the choices of oneOf must exclude each other by type or a constant: use anyOf",
    "^Unable to determine": "patterns and lengths of one text are too complex together: give fewer",
    "^panic|[Tt]oo many|limit|max is": "it is too complex to follow: make it smaller or less ambiguous",
    "^NoExtension": "no text can match it",
}
"""What the package says, found by a regex, and how to say it."""


def llguidance() -> Any:
    """Return the llguidance module. Raises MissingDependencyError."""
    try:
        return importlib.import_module("llguidance")
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "structured output needs the package llguidance: pip install 'smollm3[serve]'"
        ) from None


class GrammarLibrary:
    """Compiles grammars for one tokenizer and the vocabulary of one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        """Take about a second for 128,000 tokens. vocab_size: the model's, which may be padded."""
        module = llguidance()
        self._module = module
        self.vocab_size = vocab_size
        added = tokenizer.added_tokens_encoder
        self.id_of_tag: Mapping[str, int] = {
            tag: added[tag] for tag in TAGS if tag in added and added[tag] < vocab_size
        }
        known = min(len(tokenizer), vocab_size)
        # Ids without text, the padding of the embeddings, are allowed nowhere.
        tokens = [tokenizer.token_bytes(token_id) for token_id in range(known)] + [b""] * (vocab_size - known)
        eos = sorted(eos_token_ids)
        special = {*tokenizer.special_ids, *self.id_of_tag.values(), *eos}
        described = _Described(tokenizer, tokens, eos, sorted(idx for idx in special if idx < vocab_size))
        plain = module.LLTokenizer(module.TokenizerWrapper(described), eos_token=eos, slices=_SLICES)
        self._tokenizer = plain
        self._limits = module.LLParserLimits(**_LIMITS)
        self._free_limits = module.LLParserLimits(**_FREE_LIMITS)

    def matcher(self, grammar: str, *, free: bool) -> "Matcher":
        """Compile a grammar; `free`: with rules of a stranger. Raises ParameterError: what is wrong."""
        create, limits = self._module.LLMatcher, self._free_limits if free else self._limits
        matcher = _on_a_deep_stack(
            lambda: _guarded(create, self._tokenizer, grammar, log_level=0, limits=limits)
        )
        if matcher.is_error():
            raise ParameterError(_reason(matcher.get_error(), with_line=free))
        made = Matcher(matcher, self._tokenizer.vocab_size, self.vocab_size)
        if not made.mask().any():
            raise ParameterError("no text can match: the grammar allows no beginning")
        return made

    def regex_rule(self, pattern: str, name: str) -> str:
        """The rule that a name stands for a regex; `\\d`, `\\w` and `\\s` are ASCII."""
        return f"{name}: /{self._module.regex_to_lark(pattern, 'dws')}/"


class Matcher:
    """Where in its grammar one answer is."""

    def __init__(self, matcher: Any, matched_size: int, vocab_size: int) -> None:
        self._matcher = matcher
        self._num_bytes = (matched_size + 31) // 32 * 4
        self._num_words = (vocab_size + 31) // 32

    def copy(self) -> "Matcher":
        copy = Matcher.__new__(Matcher)
        copy._matcher = _guarded(self._matcher.deep_copy)
        copy._num_bytes, copy._num_words = self._num_bytes, self._num_words
        return copy

    def mask(self) -> NDArray[np.uint32]:
        """The ids that may come next, as bits [ceil(V / 32)]."""
        bits = np.zeros(self._num_words, np.uint32)
        _guarded(self._matcher.unsafe_compute_mask_ptr, bits.ctypes.data, self._num_bytes)
        if self._matcher.is_error():
            raise ParameterError(f"the grammar cannot go on: {_reason(self._matcher.get_error())}")
        return bits

    def accept(self, token_id: int) -> None:
        """Take in an id. Raises ParameterError if it may not come next, or a limit is reached."""
        if not _guarded(self._matcher.consume_token, token_id):
            reason = _reason(self._matcher.get_error())
            if "satisfy the grammar" in reason:
                raise ParameterError(f"token id {token_id} is not allowed by the grammar at this place")
            raise ParameterError(f"the grammar cannot go on: {reason}")

    @property
    def ended(self) -> bool:
        """Whether nothing but an eos id may come next."""
        return bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())


class _Described(SimpleNamespace):
    """A tokenizer as llguidance asks for it: the bytes of every id, and a way to encode."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: list[bytes],
        eos_token_ids: list[int],
        special_token_ids: list[int],
    ) -> None:
        super().__init__(
            tokens=tokens,
            eos_token_id=eos_token_ids[0],
            bos_token_id=None,
            special_token_ids=special_token_ids,
        )
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode_plain(text.decode("utf-8"))


def _guarded(function: Any, *arguments: Any, **options: Any) -> Any:
    """Call into the library; a panic there, which is no Exception, becomes an error like any other."""
    try:
        return function(*arguments, **options)
    except BaseException as error:
        if isinstance(error, ValueError) or type(error).__name__ == "PanicException":
            raise ParameterError(_reason(str(error))) from None
        raise


def _on_a_deep_stack(call: Callable[[], Any]) -> Any:
    """Call in a thread with room to recurse: chains of references overflow a stack of 2 MB, and crash."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    with _STACK_SIZE:
        usual = threading.stack_size(_DEEP_STACK)
        try:
            thread = threading.Thread(target=run, name="grammar")
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    return result.result()


def _reason(message: str, *, with_line: bool = False) -> str:
    """The line of a message that says what is wrong; `with_line`: and on which line of the grammar."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason given"]
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    line = _PLACE.sub("", line.partition("(in regex): ")[2] or line)
    line = next((better for found, better in _BETTER.items() if re.search(found, line)), line)
    if with_line and (place := _PLACE.match(lines[0])):
        line = f"line {place.group(1)}: {line}"
    return line if len(line) <= 300 else line[:297] + "..."
