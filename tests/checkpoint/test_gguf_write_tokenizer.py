"""Tokenizers as GGUF metadata: the same ids from our reader and from llama.cpp, or a refusal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_cpp_server import LlamaCpp, llama_cpp_process
from tiny_models import tiny_model
from token_corpus import SPECIAL, TAGS, TEMPLATE, TORTURE, train_backend
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from smollm3.checkpoint.gguf import read_metadata
from smollm3.checkpoint.gguf_write import encode_plainly, write_gguf
from smollm3.checkpoint.gguf_write_tokenizer import (
    NO_TOKENIZER,
    copied_tokenizer,
    placeholder_metadata,
    tokenizer_metadata,
)
from smollm3.checkpoint.source import open_checkpoint
from smollm3.errors import CheckpointError
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.text.gguf_tokenizer import PRE_TOKENIZERS
from smollm3.text.tokenizer import Tokenizer

NAMED = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[4], "pad_token": SPECIAL[2]}
PRE: dict[str, pre_tokenizers.PreTokenizer] = {
    "llama-bpe": train_backend().pre_tokenizer,
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZERS["qwen2"].splits[0]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def tokenizer(pre: str = "llama-bpe", *, adds_bos: bool = False, **arguments: Any) -> Tokenizer:
    return Tokenizer(backend(pre, adds_bos=adds_bos), **{"special_tokens": NAMED, **arguments})


def backend(pre: str = "llama-bpe", *, adds_bos: bool = False) -> Backend:
    trained = train_backend(adds_bos=adds_bos)
    state = json.loads(trained.to_str())
    state["model"]["ignore_merges"] = PRE_TOKENIZERS[pre].ignore_merges
    changed = Backend.from_str(json.dumps(state))
    changed.pre_tokenizer = PRE[pre]
    return changed


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[LlamaCpp]:
    with llama_cpp_process() as running:
        yield running


@pytest.mark.parametrize("pre", PRE)
@pytest.mark.parametrize("adds_bos", [False, True], ids=["bare", "bos"])
def test_a_reader_of_the_keys_gives_the_same_ids(pre: str, adds_bos: bool) -> None:
    original = tokenizer(pre, adds_bos=adds_bos, chat_templates={"default": TEMPLATE, "tools": "{{ tools }}"})
    keys, notes = tokenizer_metadata(original, len(original) + 5)
    assert notes == []
    assert keys["tokenizer.ggml.pre"] == pre
    again = Tokenizer.from_gguf({"general.architecture": "smollm3", **keys})
    for name, text in TORTURE.items():
        assert again.encode(text) == original.encode(text), name
        assert again.encode_plain(text) == original.encode_plain(text), name
        ids = original.encode(text)
        assert again.decode(ids, skip_special_tokens=True) == original.decode(ids, skip_special_tokens=True)
    assert again.special_tokens == original.special_tokens
    assert again.chat_templates == original.chat_templates
    assert again.special_ids == original.special_ids


@pytest.mark.parametrize("pre", PRE)
def test_llama_cpp_gives_the_same_ids(pre: str, llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    original = tokenizer(pre)
    path = with_keys(tmp_path, tokenizer_metadata(original, 1000)[0])
    for name, text in TORTURE.items():
        if "\0" not in text:  # it takes C strings
            assert llama_cpp.tokenize(path, text) == original.encode(text), name


@pytest.mark.parametrize(("ignores_merges", "pre"), [(True, "llama-bpe"), (False, "smaug-bpe")])
def test_words_that_no_merge_reaches_are_taken_as_the_tokenizer_says(
    ignores_merges: bool, pre: str, llama_cpp: LlamaCpp, tmp_path: Path
) -> None:
    state = json.loads(backend().to_str())
    word = next(token for token in state["model"]["vocab"] if len(token) > 5 and token.isascii())
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if "".join(pair) != word]
    state["model"]["ignore_merges"] = ignores_merges
    original = Tokenizer(Backend.from_str(json.dumps(state)), special_tokens=NAMED)
    assert (len(original.encode(word)) == 1) == ignores_merges
    keys, _ = tokenizer_metadata(original, 1000)
    assert keys["tokenizer.ggml.pre"] == pre
    assert llama_cpp.tokenize(with_keys(tmp_path, keys), word) == original.encode(word)


def with_keys(folder: Path, keys: dict[str, Any]) -> Path:
    """A tiny model of 1000 tokens with these keys."""
    model = tiny_model(
        SmolLM3ForCausalLM, vocab_size=1000, hidden_size=64, num_attention_heads=2, num_key_value_heads=1
    )
    model.save_pretrained(folder / "model")
    path = folder / "model.gguf"
    with open_checkpoint(folder / "model") as checkpoint:
        config = model.config.to_dict()
        write_gguf(path, checkpoint, config, "f16", name="x", tokenizer=keys, encode=encode_plainly)
    return path


def test_rows_without_a_token_get_names_and_added_tokens_their_kind() -> None:
    original = tokenizer()
    size = len(original)
    keys, _ = tokenizer_metadata(original, size + 2)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert tokens[size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert types[size:] == [5, 5]
    kinds = {token: types[tokens.index(token)] for token in [*SPECIAL, *TAGS, "Ġ", "a"]}
    assert kinds == {**dict.fromkeys(SPECIAL, 3), **dict.fromkeys(TAGS, 4), "Ġ": 1, "a": 1}
    assert len(set(tokens)) == len(tokens) == size + 2


def test_ends_of_an_answer_come_from_tokenizer_and_configs() -> None:
    original = tokenizer()
    end = original.eos_token_id
    keys, notes = tokenizer_metadata(original, 1000, [7, end, 8, 7])
    assert (keys["tokenizer.ggml.eos_token_id"], notes) == (end, [])
    assert (keys["tokenizer.ggml.eot_token_id"], keys["tokenizer.ggml.eom_token_id"]) == (7, 8)
    _, notes = tokenizer_metadata(original, 1000, [7, 8, 9, 10])
    assert notes == ["llama.cpp may not end answers at the ids [9, 10]"]
    bare = tokenizer(special_tokens={})
    keys, notes = tokenizer_metadata(bare, 1000, [7, 8])
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"], notes) == (7, 8, [])
    keys, notes = tokenizer_metadata(bare, 1000)
    assert "tokenizer.ggml.eos_token_id" not in keys
    assert notes == ["no token ends an answer: llama.cpp will take id 11 for one"]


def test_flags_that_get_lost_are_said() -> None:
    flagged = backend()
    flagged.add_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<w>", single_word=True, rstrip=True)])
    _, notes = tokenizer_metadata(Tokenizer(flagged, special_tokens=NAMED), 1000)
    assert notes == [
        "llama.cpp knows no single_word of <w>",
        "llama.cpp knows no lstrip of <mask>",
        "llama.cpp knows no rstrip of <w>",
    ]


def byte_level(**changes: Any) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **changes})


STRANGE: dict[str, tuple[pre_tokenizers.PreTokenizer, str]] = {
    "prefix space": (byte_level(add_prefix_space=True), "cuts text by ByteLevel with settings"),
    "own words": (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x+"), "isolated"), byte_level(use_regex=False)]),
        "llama.cpp has no name for (1 patterns, the last 'x+')",
    ),
    "whole digits": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), byte_level()]),
        "cuts text by Digits",
    ),
    "removed": (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x+"), "removed"), byte_level(use_regex=False)]),
        "cuts text by Split",
    ),
    "nothing cut": (byte_level(use_regex=False), "(0 patterns, the last '')"),
    "qwen's that takes words whole": (PRE["qwen2"], "llama.cpp has no name for"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_cuts_without_a_name_are_refused(case: str) -> None:
    step, message = STRANGE[case]
    strange = backend("llama-bpe")
    strange.pre_tokenizer = step
    with pytest.raises(CheckpointError) as caught:
        tokenizer_metadata(Tokenizer(strange, special_tokens=NAMED, name_or_path="here"), 1000)
    assert str(caught.value).startswith("here ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_normalizers_surroundings_and_too_many_tokens_are_refused() -> None:
    normal = backend()
    normal.normalizer = normalizers.NFC()
    with pytest.raises(CheckpointError, match=r"changes text before cutting it .NFC"):
        tokenizer_metadata(Tokenizer(normal, special_tokens=NAMED), 1000)
    dressed = backend()
    dressed.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[3]} $A", special_tokens=[(SPECIAL[3], dressed.token_to_id(SPECIAL[3]))]
    )
    with pytest.raises(CheckpointError, match="tokens around a text other than its bos and eos"):
        tokenizer_metadata(Tokenizer(dressed, special_tokens=NAMED), 1000)
    with pytest.raises(CheckpointError, match=r"tokens up to id \d+, and the model 100 rows"):
        tokenizer_metadata(tokenizer(), 100)


def test_a_files_own_keys_are_copied(small_model: Path, tmp_path: Path) -> None:
    metadata = read_metadata(small_model)
    copied = copied_tokenizer(metadata)
    assert copied == {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    assert copied_tokenizer({"general.architecture": "llama", "tokenizer.ggml.model": "none"}) == {}
    keys = tokenizer_metadata(tokenizer(), 1000)[0]
    written = read_metadata(with_keys(tmp_path, keys))
    assert copied_tokenizer(written) == keys


def test_the_small_models_own_tokenizer_survives_files_and_back(small_model: Path, tmp_path: Path) -> None:
    """GGUF -> tokenizer.json -> GGUF: the name of its cuts is found again from the patterns."""
    metadata = read_metadata(small_model)
    original = Tokenizer.from_gguf(metadata)
    original.save_pretrained(tmp_path)
    keys, notes = tokenizer_metadata(Tokenizer.from_folder(tmp_path), len(metadata["tokenizer.ggml.tokens"]))
    assert notes == []
    for key in ("model", "pre", "tokens", "merges", "bos_token_id", "eos_token_id", "add_bos_token"):
        assert keys[f"tokenizer.ggml.{key}"] == metadata.get(f"tokenizer.ggml.{key}", False), key
    assert keys["tokenizer.chat_template"] == metadata["tokenizer.chat_template"]


def test_without_a_tokenizer_ids_have_names_and_readers_are_told(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    keys, notes = placeholder_metadata(1000, [3])
    assert notes == [NO_TOKENIZER]
    assert keys["tokenizer.ggml.tokens"][:2] == ["<0>", "<1>"]
    assert keys["tokenizer.ggml.eos_token_id"] == 3
    with pytest.raises(CheckpointError, match="made of a model without tokenizer"):
        Tokenizer.from_gguf(keys)
    path = with_keys(tmp_path, keys)
    assert len(llama_cpp.next_logprobs(path, [5, 9, 11])) > 20
    assert copied_tokenizer(read_metadata(path)) == keys
    assert len(placeholder_metadata(10)[1]) == 2
