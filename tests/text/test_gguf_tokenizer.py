"""Tokenizers out of GGUF metadata: what the keys mean, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from token_corpus import SPECIAL, TAGS, TORTURE, train_backend

from smollm3.errors import CheckpointError
from smollm3.text.gguf_tokenizer import PRE_TOKENIZERS
from smollm3.text.tokenizer import UNLIMITED, Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """The trained tokenizer in a GGUF's words."""
    state = json.loads(train_backend().to_str())
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    num_plain = len(tokens)
    tokens += [*SPECIAL, *TAGS]
    return {
        "general.architecture": "smollm3",
        "smollm3.context_length": 65536,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smaug-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * num_plain
        + [CONTROL] * len(SPECIAL)
        + [USER_DEFINED] * len(TAGS),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": num_plain,
        "tokenizer.ggml.eos_token_id": num_plain + 4,
        "tokenizer.ggml.padding_token_id": num_plain + 2,
        "tokenizer.chat_template": "{{ messages }}",
    }


def test_it_equals_the_tokenizer_json_it_came_from(metadata: dict[str, Any]) -> None:
    ours, source = Tokenizer.from_gguf(metadata), Tokenizer(train_backend())
    assert ours.get_vocab() == source.get_vocab()
    assert (ours.vocab_size, len(ours)) == (source.vocab_size, len(source))
    for text in TORTURE.values():
        assert ours.encode(text) == source.encode(text)
        assert ours.encode_plain(text) == source.encode_plain(text)
        ids = ours.encode(text)
        assert ours.decode(ids, skip_special_tokens=True) == source.decode(ids, skip_special_tokens=True)


def test_what_the_keys_mean(metadata: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_gguf(metadata, name_or_path="a.gguf")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|finetune_right_pad_id|>", None)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.model_max_length == 65536
    assert tokenizer.name_or_path == "a.gguf"
    flags = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    assert flags == {**dict.fromkeys(SPECIAL, True), **dict.fromkeys(TAGS, False)}


def test_arrays_and_missing_keys_will_do(metadata: dict[str, Any]) -> None:
    as_arrays = {
        key: np.array(value) if isinstance(value, list) else value for key, value in metadata.items()
    }
    as_arrays["tokenizer.ggml.tokens"] = tuple(metadata["tokenizer.ggml.tokens"])
    as_arrays["tokenizer.ggml.merges"] = tuple(metadata["tokenizer.ggml.merges"])
    text = TORTURE["tags"] + TORTURE["emoji"]
    assert Tokenizer.from_gguf(as_arrays).encode(text) == Tokenizer.from_gguf(metadata).encode(text)
    least = {key: metadata[f"tokenizer.ggml.{key}"] for key in ("model", "tokens", "merges")}
    bare = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in least.items()})
    assert bare.decode(bare.encode(text)) == text
    assert (bare.eos_token, bare.chat_template, bare.model_max_length) == (None, None, UNLIMITED)
    assert bare.added_tokens == {}


@pytest.mark.parametrize(
    ("pre", "keys", "first", "last"),
    [
        ("smaug-bpe", {}, False, False),
        ("llama-bpe", {}, True, False),
        ("llama-bpe", {"add_bos_token": False}, False, False),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, True, True),
    ],
)
def test_bos_and_eos(
    metadata: dict[str, Any], pre: str, keys: dict[str, bool], first: bool, last: bool
) -> None:
    changed = {f"tokenizer.ggml.{key}": value for key, value in {"pre": pre, **keys}.items()}
    tokenizer = Tokenizer.from_gguf({**metadata, **changed})
    ids = tokenizer.encode("Hello")
    assert (ids[0] == tokenizer.bos_token_id) == first
    assert (ids[-1] == tokenizer.eos_token_id) == last
    assert tokenizer.num_special_tokens_to_add(pair=True) == 2 * (first + last)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a  123", ["a", "ĠĠ", "1", "2", "3"]),
        ("llama3", "a  1234", ["a", "Ġ", "Ġ", "123", "4"]),
        ("qwen2", "a 12", ["a", "Ġ", "1", "2"]),
        ("gpt-2", "a  12", ["a", "Ġ", "Ġ12"]),
        ("default", "a 12345.", ["a", "Ġ", "123", "45", "."]),
    ],
)
def test_how_each_pre_tokenizer_cuts(pre: str, text: str, pieces: list[str]) -> None:
    from smollm3.text.gguf_tokenizer import _pre_tokenizer

    cut = [piece for piece, _ in _pre_tokenizer(PRE_TOKENIZERS[pre]).pre_tokenize_str(text)]
    assert cut == pieces


def test_named_chat_templates(metadata: dict[str, Any]) -> None:
    more = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "{{ tools }}"}
    tokenizer = Tokenizer.from_gguf({**metadata, **more})
    assert tokenizer.chat_templates == {"tool_use": "{{ tools }}", "default": "{{ messages }}"}


def test_special_tokens_in_the_middle_keep_their_ids(metadata: dict[str, Any]) -> None:
    types = [
        CONTROL if idx in (0, 7) else kind for idx, kind in enumerate(metadata["tokenizer.ggml.token_type"])
    ]
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[7] = "<|seven|>"
    merges = [
        merge
        for merge in metadata["tokenizer.ggml.merges"]
        if metadata["tokenizer.ggml.tokens"][7] not in merge
    ]
    changed = {
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
    }
    tokenizer = Tokenizer.from_gguf({**metadata, **changed})
    assert tokenizer.encode("a<|seven|>")[-1] == 7
    assert 7 not in tokenizer.encode_plain("a<|seven|>")
    assert tokenizer.id_to_token(len(tokens) - 1) == TAGS[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "only byte-level BPE"),
        ({"model": None}, "only byte-level BPE"),
        ({"pre": "chatglm-bpe"}, "'chatglm-bpe', a pre-tokenizer that is not known"),
        ({"pre": 3}, "is 3, a pre-tokenizer that is not known"),
        ({"tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokens": []}, "has no tokenizer.ggml.tokens"),
        ({"tokens": "abc"}, "has no tokenizer.ggml.tokens"),
        ({"tokens": ["a", 3]}, "other than strings"),
        ({"tokens": ["a", "b", "a"], "token_type": [1, 1, 1]}, "'a' twice, as ids 0 and 2"),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"merges": ["ab"]}, "'ab', which is not two tokens"),
        ({"merges": ["nowhere nothing"]}, "do not fit its tokens"),
        ({"token_type": [1, 1]}, "2 entries"),
        ({"eos_token_id": 10**9}, "outside the vocabulary"),
        ({"bos_token_id": -1}, "outside the vocabulary"),
    ],
)
def test_what_does_not_fit_is_refused(
    metadata: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    special = ("bos_token_id", "eos_token_id", "padding_token_id")
    kept = {key: value for key, value in metadata.items() if key.rpartition(".")[2] not in special}
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_gguf({**kept, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}})
    assert "\n" not in str(caught.value)
