"""Ids equal llama.cpp's, and transformers', on tokenizers that come out of GGUF files."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from llama_cpp_server import llama_cpp_process
from token_corpus import SPECIAL, TORTURE, train_backend
from tokenizers import pre_tokenizers

from smollm3.checkpoint.gguf import read_metadata
from smollm3.text.tokenizer import Tokenizer
from smollm3.tokenization import SmolLM3Tokenizer

Tokenize = Callable[..., list[int]]


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Path], Tokenize]]:
    """Start llama.cpp on a file and give its tokenizer."""
    with llama_cpp_process() as llama:
        yield lambda path: partial(llama.tokenize, path)


def write_gguf(path: Path, pre: str, **metadata: Any) -> Path:
    """A llama of one tiny layer whose tokenizer is the trained one, under pre-tokenizer `pre`."""
    state = json.loads(train_backend().to_str())
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for token in state["added_tokens"]:
        tokens.append(token["content"])
        types.append(gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(tokens.index(SPECIAL[0]))
    writer.add_eos_token_id(tokens.index(SPECIAL[4]))
    for key, value in metadata.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    layer = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    for name in ["attn_norm", "ffn_norm"]:
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(32, np.float32))
    for name in layer:
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((32, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama_cpp(small_model: Path, serve: Callable[[Path], Tokenize]) -> Tokenize:
    return serve(small_model)


@pytest.fixture(scope="module")
def small_tokenizer(small_model: Path) -> SmolLM3Tokenizer:
    return SmolLM3Tokenizer.from_gguf(read_metadata(small_model))


@pytest.fixture(scope="module")
def by_transformers(small_model: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(small_model.parent, gguf_file=small_model.name)


@pytest.mark.parametrize("name", TORTURE)
def test_small_model_equals_llama_cpp(
    name: str, small_tokenizer: SmolLM3Tokenizer, llama_cpp: Tokenize
) -> None:
    text = TORTURE[name]
    assert small_tokenizer.encode(text) == llama_cpp(text, add_special=True)
    assert small_tokenizer.encode_plain(text) == llama_cpp(text, parse_special=False)
    assert small_tokenizer.decode(small_tokenizer.encode(text)) == text


def test_small_model_equals_transformers(small_tokenizer: SmolLM3Tokenizer, by_transformers: Any) -> None:
    with_digits = {"digits", "spaces before digits", "arabic"}
    for name in TORTURE.keys() - with_digits:
        assert small_tokenizer.encode(TORTURE[name]) == by_transformers.encode(TORTURE[name]), name
    # transformers drops the file's `tokenizer.ggml.pre = smollm`: give it the original's split.
    by_transformers.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for name, text in TORTURE.items():
        ids = by_transformers.encode(text)
        assert small_tokenizer.encode(text) == ids, name
        for skip in (False, True):
            expected = by_transformers.decode(ids, skip_special_tokens=skip)
            assert small_tokenizer.decode(ids, skip_special_tokens=skip) == expected, name


def test_saved_small_model_equals_transformers(small_tokenizer: SmolLM3Tokenizer, tmp_path: Path) -> None:
    small_tokenizer.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TORTURE.values():
        mine, reference = (side(text, return_offsets_mapping=True) for side in (small_tokenizer, theirs))
        assert dict(mine) == dict(reference)
    chat = [{"role": "user", "content": "Hi"}]
    options = {"add_generation_prompt": True, "tokenize": False}
    assert small_tokenizer.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)


@pytest.mark.parametrize("pre", ["default", "gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2"])
def test_every_pre_tokenizer_equals_llama_cpp(
    pre: str, tmp_path: Path, serve: Callable[[Path], Tokenize]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", pre)
    ours = Tokenizer.from_gguf(read_metadata(path))
    theirs = serve(path)
    for name, text in TORTURE.items():
        assert ours.encode(text) == theirs(text, add_special=True), name
        if name != "tags":  # llama.cpp matches user-defined tokens even in plain text
            assert ours.encode_plain(text) == theirs(text, parse_special=False), name


@pytest.mark.parametrize("added", [{"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}])
def test_bos_and_eos_as_the_file_says(
    added: dict[str, bool], tmp_path: Path, serve: Callable[[Path], Tokenize]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", "llama-bpe", **added)
    ours = Tokenizer.from_gguf(read_metadata(path))
    theirs = serve(path)
    assert ours.encode("Hello world") == theirs("Hello world", add_special=True)
