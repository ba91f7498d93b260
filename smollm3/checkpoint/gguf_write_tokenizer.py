"""A tokenizer as the metadata of a GGUF file: keys to plain Python values, and what gets lost on the way.

In: a tokenizer of tokenizer.json, or the metadata of the GGUF file that the model came from. Out: the keys
under `tokenizer.`. llama.cpp knows how text is cut by name alone, so a tokenizer that cuts it in a way that
has no name is refused. Knows no weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gguf import TokenType

from smollm3.errors import CheckpointError
from smollm3.text.gguf_tokenizer import PLACEHOLDER, PRE_TOKENIZERS
from smollm3.text.tokenizer import Tokenizer

_PREFERRED = ("llama-bpe", "smaug-bpe", "smollm", "gpt-2", "qwen2", "default")
_SPECIAL_KEYS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_STOP_KEYS = ("eot", "eom")  # where llama.cpp keeps second and third ends of an answer
_FLAGS = ("single_word", "lstrip", "rstrip")
_WORDS = PRE_TOKENIZERS["gpt-2"].splits[0]  # what a ByteLevel step cuts by
_PROBE = "a"

NO_TOKENIZER = "the model has no tokenizer: the file gives every id a name in place of a text"


def copied_tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer's keys of another GGUF file, as they are; an empty dict where it has none."""
    copied = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    return {} if copied.get("tokenizer.ggml.model") in (None, "none", "no_vocab") else copied


def placeholder_metadata(
    vocab_size: int, eos_token_ids: Sequence[int] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Return keys for a model without tokenizer: llama.cpp answers nothing for a file without a vocabulary.

    The ids are named `<0>`, `<1>`, ...; PLACEHOLDER tells readers that they are no texts.
    """
    specials, notes = _special_ids({}, eos_token_ids)
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": "default",
        "tokens": [f"<{token_id}>" for token_id in range(vocab_size)],
        "token_type": [int(TokenType.NORMAL)] * vocab_size,
        "merges": ["< 0"],  # a file without merges is refused
        "add_bos_token": False,
        **specials,
    }
    keys = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return {**keys, PLACEHOLDER: True}, [NO_TOKENIZER, *notes]


def tokenizer_metadata(
    tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Return the keys for a tokenizer, and a line for each thing that llama.cpp will do otherwise.

    Args:
        vocab_size: rows of the embedding; rows without a token get a name that no text yields.
        eos_token_ids: ids that end an answer according to the model's configs.

    Raises CheckpointError for a tokenizer that no GGUF file can describe.
    """
    state = tokenizer.state()
    where = tokenizer.name_or_path or "the tokenizer"
    if state["normalizer"] is not None:
        raise CheckpointError(
            f"{where} changes text before cutting it ({state['normalizer'].get('type')}): GGUF cannot"
        )
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": _pre_name(state, where),
        **_tokens(tokenizer, vocab_size, where),
        "merges": [
            merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]
        ],
    }
    named = {key: getattr(tokenizer, f"{name}_id") for name, key in _SPECIAL_KEYS.items()}
    specials, notes = _special_ids(named, eos_token_ids)
    values |= specials
    values |= _surroundings(tokenizer, where)
    keys = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return keys | _templates(tokenizer), notes + _lost_flags(state)


def _pre_name(state: Mapping[str, Any], where: str) -> str:
    """Return llama.cpp's name for the way in which a tokenizer cuts text."""
    splits = tuple(_splits(state["pre_tokenizer"], where))
    ignores_merges = bool(state["model"].get("ignore_merges"))
    if splits == PRE_TOKENIZERS["smaug-bpe"].splits and not ignores_merges:
        return "smaug-bpe"  # llama.cpp merges there; the table says what SmolLM3 means by the name
    for name in sorted(PRE_TOKENIZERS, key=lambda n: _PREFERRED.index(n) if n in _PREFERRED else 99):
        known = PRE_TOKENIZERS[name]
        if known.splits == splits and known.ignore_merges == ignores_merges:
            return name
    raise CheckpointError(
        f"{where} cuts text by rules that llama.cpp has no name for ({len(splits)} patterns, the last "
        f"{splits[-1][:40] if splits else ''!r}): only this package can run it"
    )


def _splits(step: Mapping[str, Any] | None, where: str) -> Iterable[str]:
    """Yield the patterns by which a pre-tokenizer cuts, in order."""
    kind = None if step is None else step["type"]
    if step is None:
        return
    if kind == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _splits(inner, where)
    elif kind == "ByteLevel" and not step["add_prefix_space"]:
        if step["use_regex"]:
            yield _WORDS
    elif kind == "Digits" and step["individual_digits"]:
        yield r"\p{N}"
    elif (
        kind == "Split"
        and step["behavior"] == "Isolated"
        and not step["invert"]
        and "Regex" in step["pattern"]
    ):
        yield step["pattern"]["Regex"]
    else:
        raise CheckpointError(f"{where} cuts text by {kind} with settings that no GGUF file can describe")


def _tokens(tokenizer: Tokenizer, vocab_size: int, where: str) -> dict[str, Any]:
    """Return every row's token and its type."""
    vocab, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    if max(vocab.values()) >= vocab_size:
        raise CheckpointError(
            f"{where} has tokens up to id {max(vocab.values())}, and the model {vocab_size} rows for them: "
            "they belong to different models"
        )
    tokens = [f"[PAD{token_id}]" for token_id in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, token_id in vocab.items():
        tokens[token_id], types[token_id] = token, int(TokenType.NORMAL)
    for token_id, added_token in added.items():
        types[token_id] = int(TokenType.CONTROL if added_token.special else TokenType.USER_DEFINED)
    return {"tokens": tokens, "token_type": types}


def _special_ids(
    named: Mapping[str, int | None], eos_token_ids: Sequence[int]
) -> tuple[dict[str, int], list[str]]:
    """Return the ids of special tokens: the tokenizer's, and the further ends that the configs name."""
    values = {f"{key}_token_id": token_id for key, token_id in named.items() if token_id is not None}
    if "eos_token_id" not in values and eos_token_ids:
        values["eos_token_id"] = eos_token_ids[0]
    if "eos_token_id" not in values:
        return values, ["no token ends an answer: llama.cpp will take id 11 for one"]
    further = [token_id for token_id in dict.fromkeys(eos_token_ids) if token_id != values["eos_token_id"]]
    values |= {f"{key}_token_id": token_id for key, token_id in zip(_STOP_KEYS, further, strict=False)}
    beyond = further[len(_STOP_KEYS) :]
    return values, [f"llama.cpp may not end answers at the ids {beyond}"] if beyond else []


def _surroundings(tokenizer: Tokenizer, where: str) -> dict[str, bool]:
    """Return whether a text gets a token before it and one behind it."""
    bare, dressed = (tokenizer.encode(_PROBE, add_special_tokens=add) for add in (False, True))
    for before in (False, True):
        for behind in (False, True):
            expected = [tokenizer.bos_token_id] * before + bare + [tokenizer.eos_token_id] * behind
            if expected == dressed:
                return {"add_bos_token": before, "add_eos_token": behind}
    raise CheckpointError(
        f"{where} puts tokens around a text other than its bos and eos tokens, which GGUF cannot say"
    )


def _templates(tokenizer: Tokenizer) -> dict[str, Any]:
    named = {name: text for name, text in tokenizer.chat_templates.items() if name != "default"}
    keys: dict[str, Any] = {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    if named:
        keys["tokenizer.chat_templates"] = list(named)
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = tokenizer.chat_template
    return keys


def _lost_flags(state: Mapping[str, Any]) -> list[str]:
    """Say which added tokens swallow spaces around them, or want to be words of their own."""
    lost = {flag: [t["content"] for t in state["added_tokens"] if t.get(flag)] for flag in _FLAGS}
    return [f"llama.cpp knows no {flag} of {', '.join(tokens)}" for flag, tokens in lost.items() if tokens]
