"""Ids, offsets, masks, windows and text equal transformers' on the same tokenizer.json."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import transformers
from token_corpus import TORTURE, write_folder

from smollm3.tokenization import SmolLM3Tokenizer

QUESTION = "Where do we live, and since 2024?"
CONTEXT = "We live in København  since 1999.\n\nBefore that we lived in 東京 👩‍👩‍👧 for 12 years. " * 3


@pytest.fixture(scope="module", params=[False, True], ids=["no bos", "bos"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tokenizer"), adds_bos=request.param)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def sides(ours: SmolLM3Tokenizer, theirs: Any) -> None:
    """Whatever a test before has set: both pad and cut on the right."""
    ours.padding_side = theirs.padding_side = "right"
    ours.truncation_side = theirs.truncation_side = "right"


@pytest.fixture(scope="module")
def ours(folder: Path) -> SmolLM3Tokenizer:
    return SmolLM3Tokenizer.from_folder(folder)


def assert_equal(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    for key, expected in theirs.items():
        value = ours[key]
        if hasattr(expected, "shape"):
            assert type(value) is type(expected)
            assert value.dtype == expected.dtype
            assert value.shape == expected.shape
            value, expected = value.tolist(), expected.tolist()
        assert value == expected, key


@pytest.mark.parametrize("name", TORTURE)
def test_ids_tokens_and_text(name: str, ours: SmolLM3Tokenizer, theirs: Any) -> None:
    text = TORTURE[name]
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_tokens_to_string(ours.tokenize(text)) == theirs.convert_tokens_to_string(
        theirs.tokenize(text)
    )
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)


@pytest.mark.parametrize("name", TORTURE)
def test_offsets_words_and_masks(name: str, ours: SmolLM3Tokenizer, theirs: Any) -> None:
    text = TORTURE[name]
    options = {
        "return_offsets_mapping": True,
        "return_special_tokens_mask": True,
        "return_token_type_ids": True,
        "return_length": True,
    }
    mine, reference = ours(text, **options), theirs(text, **options)
    assert_equal(mine, reference)
    assert mine.tokens() == reference.tokens()
    assert mine.word_ids() == reference.word_ids()
    assert mine.sequence_ids() == reference.sequence_ids()
    assert mine.n_sequences == reference.n_sequences
    for char in range(len(text)):
        assert mine.char_to_token(char) == reference.char_to_token(char)
        assert mine.char_to_word(0, char) == reference.char_to_word(0, char)
    for token in range(len(mine["input_ids"])):
        assert mine.token_to_chars(token) == reference.token_to_chars(token)
        assert mine.token_to_word(0, token) == reference.token_to_word(0, token)
        assert mine.token_to_sequence(token) == reference.token_to_sequence(token)
    for word in {word for word in mine.word_ids() if word is not None}:
        assert mine.word_to_tokens(word) == reference.word_to_tokens(word)
        assert mine.word_to_chars(0, word) == reference.word_to_chars(0, word)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_padding(side: str, tensors: str | None, ours: SmolLM3Tokenizer, theirs: Any) -> None:
    texts = [*TORTURE.values()]
    for options in (
        {"padding": True},
        {"padding": "longest", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 40, "truncation": True},
        {"padding": "max_length"},
        {"padding": "max_length", "max_length": 600, "pad_to_multiple_of": 7},
    ):
        options = {**options, "padding_side": side, "return_tensors": tensors, "return_token_type_ids": True}
        assert_equal(ours(texts, **options), theirs(texts, **options))
    ours.padding_side = theirs.padding_side = side
    assert_equal(ours(texts, padding=True), theirs(texts, padding=True))
    assert_equal(ours(texts[1], return_tensors=tensors), theirs(texts[1], return_tensors=tensors))


def test_padding_of_rows_that_are_ids_already(ours: SmolLM3Tokenizer, theirs: Any) -> None:
    rows = [{"input_ids": list(range(n)), "special_tokens_mask": [0] * n, "row": n} for n in (1, 5, 3)]
    for options in (
        {},
        {"padding": "max_length", "max_length": 9},
        {"pad_to_multiple_of": 4, "padding_side": "left"},
    ):
        assert_equal(ours.pad(rows, **options), theirs.pad([dict(row) for row in rows], **options))
    assert_equal(
        ours.pad({"input_ids": [[1], [2, 3]]}, return_tensors="pt"),
        theirs.pad({"input_ids": [[1], [2, 3]]}, return_tensors="pt"),
    )
    assert_equal(
        ours.pad({"input_ids": [1, 2]}, pad_to_multiple_of=4),
        theirs.pad({"input_ids": [1, 2]}, pad_to_multiple_of=4),
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation(side: str, ours: SmolLM3Tokenizer, theirs: Any) -> None:
    ours.truncation_side = theirs.truncation_side = side
    for limit, overflow in product((2, 5, 17, 200), (False, True)):
        options = {
            "truncation": True,
            "max_length": limit,
            "stride": 2 if limit > 4 else 0,
            "return_overflowing_tokens": overflow,
            "return_offsets_mapping": True,
        }
        assert_equal(ours(CONTEXT, **options), theirs(CONTEXT, **options))
    assert_equal(ours(CONTEXT, max_length=9), theirs(CONTEXT, max_length=9))
    assert_equal(ours(CONTEXT * 9, truncation=True), theirs(CONTEXT * 9, truncation=True))


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pairs_and_their_windows(strategy: str, side: str, ours: SmolLM3Tokenizer, theirs: Any) -> None:
    ours.truncation_side = theirs.truncation_side = side
    first, second = (CONTEXT, QUESTION) if strategy == "only_first" else (QUESTION, CONTEXT)
    options = {
        "truncation": strategy,
        "max_length": 50,
        "stride": 7,
        "return_overflowing_tokens": True,
        "return_offsets_mapping": True,
        "return_token_type_ids": True,
        "padding": "max_length",
    }
    mine, reference = ours([first] * 2, [second] * 2, **options), theirs([first] * 2, [second] * 2, **options)
    assert_equal(mine, reference)
    for row in range(len(mine["input_ids"])):
        assert mine.sequence_ids(row) == reference.sequence_ids(row)
        assert mine.word_ids(row) == reference.word_ids(row)
    char = CONTEXT.index("東")
    sequence = 0 if strategy == "only_first" else 1
    assert mine.char_to_token(1, char, sequence) == reference.char_to_token(1, char, sequence)


def test_longest_first_shares_like_transformers(ours: SmolLM3Tokenizer, theirs: Any) -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    for num_first, num_second, limit in product((1, 3, 10), (1, 4, 9), (6, 7, 11, 20)):
        pair = (" ".join(words[:num_first]), " ".join(words[:num_second]))
        options = {"truncation": True, "max_length": limit, "return_overflowing_tokens": True}
        assert_equal(ours(*pair, **options), theirs(*pair, **options))


def test_pairs_in_a_list_and_words_in_lists(ours: SmolLM3Tokenizer, theirs: Any) -> None:
    pairs = [(QUESTION, CONTEXT), ("a", "b c")]
    assert_equal(ours(pairs, return_token_type_ids=True), theirs(pairs, return_token_type_ids=True))
    assert_equal(ours(QUESTION, CONTEXT), theirs(QUESTION, CONTEXT))
    words = [["København", "is", "a", "city"], ["東京", "too"]]
    mine, reference = ours(words, is_split_into_words=True), theirs(words, is_split_into_words=True)
    assert_equal(mine, reference)
    assert [mine.word_ids(row) for row in (0, 1)] == [reference.word_ids(row) for row in (0, 1)]
    assert_equal(ours(words[0], is_split_into_words=True), theirs(words[0], is_split_into_words=True))


def test_decoding_of_batches_and_of_any_ids(ours: SmolLM3Tokenizer, theirs: Any) -> None:
    batch = ours([*TORTURE.values()], padding=True, return_tensors="pt")["input_ids"]
    for skip in (False, True):
        expected = theirs.batch_decode(batch, skip_special_tokens=skip)
        assert ours.batch_decode(batch, skip_special_tokens=skip) == expected
        assert ours.batch_decode(batch.numpy(), skip_special_tokens=skip) == expected
        assert ours.batch_decode(batch.tolist(), skip_special_tokens=skip) == expected
        assert ours.decode(batch, skip_special_tokens=skip) == theirs.decode(batch, skip_special_tokens=skip)
    for token_id in range(len(ours) + 5):
        assert ours.decode(token_id) == theirs.decode(token_id)
    assert ours.decode([]) == theirs.decode([])


def test_vocabulary_and_special_tokens(ours: SmolLM3Tokenizer, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.model_max_length == theirs.model_max_length
    assert ours.num_special_tokens_to_add(True) == theirs.num_special_tokens_to_add(True)
    tokens = ["<think>", "the", "nowhere"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")


def test_transformers_opens_what_we_save(folder: Path, ours: SmolLM3Tokenizer, tmp_path: Path) -> None:
    ours.pad_token = "<|im_end|>"
    ours.padding_side = "left"
    ours.chat_templates["tool_use"] = "{{ tools }}"
    ours.save_pretrained(tmp_path / "saved")
    for opened in (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "saved"),
        SmolLM3Tokenizer.from_folder(tmp_path / "saved"),
    ):
        assert opened.pad_token == "<|im_end|>"
        assert opened.padding_side == "left"
        assert opened.model_max_length == 512
        assert opened.get_chat_template() == ours.chat_template
        assert opened.get_chat_template(tools=[{}]) == "{{ tools }}"
        texts = [*TORTURE.values()]
        assert_equal(opened(texts, padding=True), ours(texts, padding=True))
    ours.pad_token = "<|finetune_right_pad_id|>"
    ours.padding_side = "right"
    ours.chat_templates.pop("tool_use")


def test_we_open_what_transformers_saves(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    opened = SmolLM3Tokenizer.from_folder(tmp_path)
    texts = [*TORTURE.values()]
    assert_equal(opened(texts, padding=True), theirs(texts, padding=True))
    assert opened.chat_template == theirs.chat_template
    assert opened.special_tokens_map == theirs.special_tokens_map


CHAT = [
    {"role": "user", "content": "Hi <|im_end|> 2024  "},
    {"role": "assistant", "content": "Hello 👩‍👩‍👧"},
    {"role": "user", "content": "Bye"},
]


def test_chat_template(ours: SmolLM3Tokenizer, theirs: Any) -> None:
    for options in (
        {"tokenize": False},
        {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False},
        {"add_generation_prompt": True, "return_dict": False},
        {"return_tensors": "pt"},
        {"return_tensors": "np", "return_dict": False},
        {"truncation": True, "max_length": 9},
        {"return_assistant_tokens_mask": True},
        {"return_assistant_tokens_mask": True, "return_tensors": "pt"},
        {"return_assistant_tokens_mask": True, "truncation": True, "max_length": 30},
    ):
        mine, reference = (
            ours.apply_chat_template(CHAT, **options),
            theirs.apply_chat_template(CHAT, **options),
        )
        if options.get("return_dict", options.get("tokenize", True)):
            assert_equal(mine, reference)
        else:
            assert_equal({"ids": mine}, {"ids": reference})
    batch = [CHAT, CHAT[:1]]
    options = {"padding": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
    assert_equal(ours.apply_chat_template(batch, **options), theirs.apply_chat_template(batch, **options))
    assert ours.apply_chat_template(batch, tokenize=False) == theirs.apply_chat_template(
        batch, tokenize=False
    )
    last = [*CHAT[:1], {"role": "assistant", "content": "Sure, "}]
    options = {"continue_final_message": True, "tokenize": False}
    assert ours.apply_chat_template(last, **options) == theirs.apply_chat_template(last, **options)


def test_deployed_chat_template_to_ids(
    ours: SmolLM3Tokenizer, theirs: Any, deployed_chat_template: str
) -> None:
    options = {"chat_template": deployed_chat_template, "add_generation_prompt": True}
    mine = ours.apply_chat_template(CHAT, **options)
    assert_equal(mine, theirs.apply_chat_template(CHAT, **options))
