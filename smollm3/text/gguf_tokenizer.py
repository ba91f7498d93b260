"""GGUF metadata in, a `tokenizers.Tokenizer` and its special tokens out.

A GGUF stores the vocabulary, the merges and the name of the pre-tokenizer; the name stands for regular
expressions that live in the programs that read it. The table here holds those of Llama 3 (SmolLM3), of
SmolLM and SmolLM2 and of their neighbours. A name that is not in the table is an error: a wrong split gives
ids that look fine and a model that answers badly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from smollm3.errors import CheckpointError

PLACEHOLDER = "tokenizer.ggml.placeholder"  # names stand for the ids of a model without tokenizer
# `tokenizer.ggml.token_type`
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before the merges run: each regex cuts what the one before it left."""

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is in the vocabulary is taken whole
    adds_bos: bool = False  # when the file does not say


_GPT2_LIKE = PreTokenizer((_GPT2,))
_LLAMA3_LIKE = PreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True)
_DIGIT_BY_DIGIT = PreTokenizer((r"\p{N}", _GPT2))
_QWEN2_LIKE = PreTokenizer((_QWEN2,))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _GPT2_LIKE,
    "olmo": _GPT2_LIKE,
    "smollm": _DIGIT_BY_DIGIT,
    "starcoder": _DIGIT_BY_DIGIT,
    "refact": _DIGIT_BY_DIGIT,
    "command-r": _DIGIT_BY_DIGIT,
    "llama3": _LLAMA3_LIKE,
    "llama-v3": _LLAMA3_LIKE,
    "llama-bpe": _LLAMA3_LIKE,
    # SmolLM3: Llama 3's tokenizer without its leading <|begin_of_text|>.
    "smaug-bpe": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "dbrx": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "qwen2": _QWEN2_LIKE,
    "deepseek-r1-qwen": _QWEN2_LIKE,
    "stablelm2": _QWEN2_LIKE,
}

_SPECIAL_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


@dataclass(frozen=True)
class GGUFTokenizer:
    """What a GGUF file says about its tokenizer, in the words of a `Tokenizer`'s constructor."""

    backend: Tokenizer
    special_tokens: dict[str, str]
    chat_templates: dict[str, str]
    model_max_length: int | None


def read_gguf_tokenizer(metadata: Mapping[str, Any]) -> GGUFTokenizer:
    """Build the tokenizer that a GGUF's metadata describes.

    `metadata` maps the file's keys (`tokenizer.ggml.tokens`, ...) to Python values or arrays.
    Raises `CheckpointError` for another kind of tokenizer, an unknown pre-tokenizer and contradicting parts.
    """
    if metadata.get(PLACEHOLDER):
        raise CheckpointError("the GGUF was made of a model without tokenizer: it takes and gives ids only")
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise CheckpointError(
            f"GGUF tokenizer.ggml.model is {model!r}: only byte-level BPE ('gpt2') can be read; "
            "use a file of a SmolLM or Llama 3 model"
        )
    name = metadata.get("tokenizer.ggml.pre") or "default"
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"GGUF tokenizer.ggml.pre is {name!r}, a pre-tokenizer that is not known here; known: "
            + ", ".join(PRE_TOKENIZERS)
        )
    pre = PRE_TOKENIZERS[name]
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    special_tokens = _special_tokens(metadata, tokens)
    backend = _backend(metadata, tokens, pre)
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = _post_processor(
        special_tokens,
        backend,
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", pre.adds_bos)),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
    )
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return GGUFTokenizer(
        backend, special_tokens, _chat_templates(metadata), int(context) if context else None
    )


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = metadata.get(key)
    if values is None or isinstance(values, str | bytes) or len(values) == 0:
        raise CheckpointError(f"GGUF metadata has no {key}: the file carries no tokenizer; use one that does")
    strings = list(values)
    if not all(isinstance(value, str) for value in strings):
        raise CheckpointError(
            f"GGUF metadata's {key} holds something other than strings; the file is damaged"
        )
    return strings


def _special_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    found = {}
    for name, key in _SPECIAL_IDS.items():
        if (token_id := metadata.get(key)) is None:
            continue
        if not 0 <= int(token_id) < len(tokens):
            raise CheckpointError(f"GGUF {key} is {token_id}, outside the vocabulary of {len(tokens)} tokens")
        found[name] = tokens[int(token_id)]
    return found


def _token_types(metadata: Mapping[str, Any], num_tokens: int) -> list[int]:
    values = metadata.get("tokenizer.ggml.token_type")
    if values is None:
        return [1] * num_tokens
    types = [int(value) for value in values]
    if len(types) != num_tokens:
        raise CheckpointError(
            f"GGUF tokenizer.ggml.token_type has {len(types)} entries for {num_tokens} tokens: damaged"
        )
    return types


def _backend(metadata: Mapping[str, Any], tokens: Sequence[str], pre: PreTokenizer) -> Tokenizer:
    types = _token_types(metadata, len(tokens))
    added = [
        (token_id, AddedToken(tokens[token_id], special=kind != USER_DEFINED, normalized=False))
        for token_id, kind in enumerate(types)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and tokens[token_id]
    ]
    # Added tokens at the end stay out of the merges' vocabulary, as in the tokenizer.json they came from.
    num_plain, added_ids = len(tokens), {token_id for token_id, _ in added}
    while num_plain - 1 in added_ids:
        num_plain -= 1
    vocab: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        if (first := vocab.setdefault(token, token_id)) != token_id:
            raise CheckpointError(
                f"GGUF tokenizer.ggml.tokens gives {token!r} twice, as ids {first} and {token_id}"
            )
    plain = {token: token_id for token, token_id in vocab.items() if token_id < num_plain}
    merges = [_merge(line) for line in _strings(metadata, "tokenizer.ggml.merges")]
    try:
        backend = Tokenizer(models.BPE(vocab=plain, merges=merges, ignore_merges=pre.ignore_merges))
    except Exception as error:  # the library raises bare Exceptions
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"GGUF tokenizer.ggml.merges do not fit its tokens: {reason}") from error
    backend.add_tokens([token for _, token in added])
    return backend


def _merge(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    if not left or not right:
        raise CheckpointError(
            f"GGUF tokenizer.ggml.merges holds {line!r}, which is not two tokens with a space"
        )
    return left, right


def _pre_tokenizer(pre: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Regex(regex), behavior="isolated") for regex in pre.splits]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _post_processor(
    special_tokens: Mapping[str, str], backend: Tokenizer, *, add_bos: bool, add_eos: bool
) -> processors.TemplateProcessing:
    """What surrounds a text (`add_special_tokens=True`); bos and eos where the file asks for them."""
    bos = special_tokens.get("bos_token") if add_bos else None
    eos = special_tokens.get("eos_token") if add_eos else None
    first = [f"{bos}:0"] * bool(bos) + ["$A:0"] + [f"{eos}:0"] * bool(eos)
    second = [f"{bos}:1"] * bool(bos) + ["$B:1"] + [f"{eos}:1"] * bool(eos)
    used = {token: backend.token_to_id(token) for token in (bos, eos) if token}
    return processors.TemplateProcessing(single=first, pair=first + second, special_tokens=list(used.items()))


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    templates = {}
    for name in metadata.get("tokenizer.chat_templates") or ():
        if isinstance(text := metadata.get(f"tokenizer.chat_template.{name}"), str):
            templates[str(name)] = text
    if isinstance(default := metadata.get("tokenizer.chat_template"), str):
        templates["default"] = default
    return templates
