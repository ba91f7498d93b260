"""The tokenizer's public face by itself: what it returns, what it refuses, how it loads."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from token_corpus import TEMPLATE, write_folder

from smollm3.batch_encoding import BatchEncoding, CharSpan, TokenSpan
from smollm3.errors import DeviceError, ParameterError, PromptError, SmolLM3Error, TemplateError
from smollm3.tokenization import SmolLM3Tokenizer

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(folder: Path) -> SmolLM3Tokenizer:
    return SmolLM3Tokenizer.from_pretrained(folder)


# What a call returns


def test_an_encoding_is_a_mapping_with_attributes(tokenizer: SmolLM3Tokenizer) -> None:
    encoding = tokenizer(["Hi there", "Hi"], padding=True, return_tensors="pt")
    assert isinstance(encoding, Mapping)
    assert list(encoding) == ["input_ids", "attention_mask"]
    assert encoding.input_ids is encoding["input_ids"] is encoding.data["input_ids"]
    assert encoding.input_ids.dtype == torch.int64

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[int, ...]:
        return tuple(input_ids.shape)

    assert model(**encoding) == encoding["attention_mask"].shape
    encoding["labels"] = 3
    assert encoding.pop("labels") == 3
    with pytest.raises(AttributeError, match="token_type_ids"):
        _ = encoding.token_type_ids
    with pytest.raises(KeyError):
        _ = encoding["token_type_ids"]


def test_rows_and_slices(tokenizer: SmolLM3Tokenizer) -> None:
    encoding = tokenizer(["Hi there", "Hi", "you"])
    assert encoding[1].ids == encoding["input_ids"][1]
    assert encoding[:2] == {key: value[:2] for key, value in encoding.items()}
    with pytest.raises(ParameterError, match="no offsets"):
        BatchEncoding({"input_ids": [1]}).tokens()


def test_to_moves_tensors_in_place(tokenizer: SmolLM3Tokenizer) -> None:
    encoding = tokenizer("Hi", return_tensors="pt")
    encoding["note"] = "text"
    assert encoding.to("meta") is encoding
    assert encoding["input_ids"].device.type == encoding["attention_mask"].device.type == "meta"
    assert encoding["note"] == "text"


@pytest.mark.parametrize("device", ["cuda", "cuda:1", 0, torch.device("cuda")])
def test_to_a_gpu_that_is_not_there_is_one_line(
    tokenizer: SmolLM3Tokenizer, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    encoding = tokenizer("Hi", return_tensors="pt")
    with pytest.raises(DeviceError, match=r"^device .* asks for a CUDA GPU.*\.to\(model\.device\)$"):
        encoding.to(device)
    assert encoding["input_ids"].device.type == "cpu"


def test_encodings_survive_pickling(tokenizer: SmolLM3Tokenizer) -> None:
    encoding = tokenizer("Hi there", return_tensors="pt")
    again = pickle.loads(pickle.dumps(encoding))
    assert again["input_ids"].tolist() == encoding["input_ids"].tolist()
    assert again.tokens() == encoding.tokens()
    assert pickle.loads(pickle.dumps(tokenizer))("Hi there")["input_ids"] == encoding["input_ids"][0].tolist()


def test_shapes_of_single_inputs_and_batches(tokenizer: SmolLM3Tokenizer) -> None:
    num = len(tokenizer("Hi there")["input_ids"])
    assert isinstance(tokenizer("Hi there")["input_ids"][0], int)
    assert tokenizer("Hi there", return_tensors="np")["input_ids"].shape == (1, num)
    assert tokenizer(["Hi there"], return_tensors="pt")["input_ids"].shape == (1, num)
    assert tokenizer("", return_tensors="pt")["input_ids"].shape == (1, 0)
    assert tokenizer("", return_tensors="pt")["input_ids"].dtype == torch.int64
    assert len(tokenizer("Hi there", return_overflowing_tokens=True)["input_ids"]) == 1


def test_tokens_words_and_characters(tokenizer: SmolLM3Tokenizer) -> None:
    text = "one  two 東"
    encoding = tokenizer(text)
    last = encoding.char_to_token(len(text) - 1)
    assert last is not None
    start = encoding.token_to_chars(last)
    assert isinstance(start, CharSpan)
    assert text[start.start : start.end] == "東"
    word = encoding.token_to_word(last)
    assert word is not None
    assert isinstance(encoding.word_to_tokens(word), TokenSpan)
    assert encoding.word_to_chars(word) == encoding.word_to_chars(0, word)
    assert encoding.token_to_chars(-1) == encoding.token_to_chars(len(encoding.tokens()) - 1)
    assert encoding.char_to_token(len(text) + 3) is None
    assert encoding.word_to_tokens(99) is None


def test_encode_with_options(tokenizer: SmolLM3Tokenizer) -> None:
    ids = tokenizer.encode("Hi there")
    assert tokenizer.encode("Hi there", return_tensors="pt").tolist() == [ids]
    assert tokenizer.encode("Hi there", max_length=1, truncation=True) == ids[:1]


def test_question_and_context_windows_cover_the_context(tokenizer: SmolLM3Tokenizer) -> None:
    question, context = "Where do we live?", "We live in København. " * 30
    encoding = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=40,
        stride=10,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
    )
    covered = set()
    for row, offsets in enumerate(encoding["offset_mapping"]):
        assert len(encoding["input_ids"][row]) == 40
        spans = [span for span, text in zip(offsets, encoding.sequence_ids(row), strict=True) if text == 1]
        covered |= {char for start, end in spans for char in range(start, end)}
    assert covered >= {idx for idx, char in enumerate(context) if not char.isspace()}
    assert encoding["overflow_to_sample_mapping"] == [0] * len(encoding["input_ids"])


def test_ids_and_tokens(tokenizer: SmolLM3Tokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    ids = torch.tensor(tokenizer.encode("a<|im_end|>"))
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True) == ["a"]
    assert tokenizer.convert_tokens_to_ids("nowhere") is None
    tokenizer.unk_token = "<think>"
    assert tokenizer.convert_tokens_to_ids(["nowhere"]) == [tokenizer.unk_token_id]
    assert tokenizer.get_special_tokens_mask(ids.tolist()) == [0, 1]


# What a call refuses


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (([],), {}, "empty"),
        ((None,), {}, "NoneType"),
        (([["a", "b", "c"]],), {}, "two texts"),
        (([("a", "b"), "c"],), {}, "two texts"),
        ((["a", "b"], ["c"]), {}, "list of 2 texts"),
        ((["a"], "c"), {}, "list of 1 texts"),
        (("a",), {"padding": "longest_first"}, "padding is 'longest_first'"),
        (("a",), {"truncation": "shortest"}, "'shortest' is unknown"),
        (("a",), {"truncation": "only_second", "max_length": 0}, "second text"),
        (("a", "b"), {"truncation": "only_second", "max_length": 1}, "too small"),
        (("a b c d e f g",), {"truncation": True, "max_length": 3, "stride": 3}, "stride 3"),
        (("a",), {"truncation": True, "max_length": -1}, "max_length is -1"),
        (("a",), {"truncation": True, "max_length": 5, "stride": -1}, "stride is -1"),
        (("a",), {"padding": True, "padding_side": "top"}, "padding_side"),
        (("a",), {"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of"),
        (
            ("a",),
            {"padding": True, "truncation": True, "max_length": 9, "pad_to_multiple_of": 2},
            "no multiple",
        ),
        (("a",), {"padding": "max_length", "max_length": 10**12}, "more than any model reads"),
        (("a",), {"padding": True, "pad_to_multiple_of": 10**12}, "more than any model reads"),
        ((["a", "b c d"],), {"return_tensors": "pt"}, "different lengths"),
        ((["a", "b c d"],), {"return_tensors": "np"}, "different lengths"),
        (("a",), {"return_tensors": "tf"}, "return_tensors is 'tf'"),
    ],
)
def test_wrong_calls_get_one_clear_line(
    tokenizer: SmolLM3Tokenizer, args: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SmolLM3Error, match=message) as caught:
        tokenizer(*args, **options)
    assert "\n" not in str(caught.value)


def test_special_tokens_need_room(tmp_path: Path) -> None:
    tokenizer = SmolLM3Tokenizer.from_folder(write_folder(tmp_path, adds_bos=True))
    assert tokenizer("Hi there", truncation=True, max_length=1)["input_ids"] == [tokenizer.bos_token_id]
    with pytest.raises(ParameterError, match="no room"):
        tokenizer("Hi", "there", truncation=True, max_length=1)


def test_padding_needs_a_token_and_a_length(tokenizer: SmolLM3Tokenizer) -> None:
    tokenizer.pad_token = None
    with pytest.raises(ParameterError, match=r"pad_token = tokenizer\.eos_token"):
        tokenizer(["a", "b c"], padding=True)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = 10**30
    with pytest.raises(ParameterError, match="max_length"):
        tokenizer("a", padding="max_length")
    with pytest.warns(UserWarning, match="max_length does nothing"):
        tokenizer(["a"], padding=True, max_length=7)
    with pytest.raises(PromptError, match="input_ids"):
        tokenizer.pad({"input_ids": []})


# Chat templates


def test_names_and_sources_of_templates(tokenizer: SmolLM3Tokenizer) -> None:
    assert tokenizer.get_chat_template() == TEMPLATE
    tokenizer.chat_templates["tool_use"] = "tools: {{ tools | length }}"
    assert tokenizer.apply_chat_template(CHAT, tools=[{"name": "f"}], tokenize=False) == "tools: 1"
    assert (
        tokenizer.apply_chat_template(CHAT, chat_template="tool_use", tokenize=False, tools=[]) == "tools: 0"
    )
    assert (
        tokenizer.apply_chat_template(CHAT, chat_template="x{{ messages | length }}", tokenize=False) == "x1"
    )
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match="only tool_use"):
        tokenizer.apply_chat_template(CHAT)
    tokenizer.chat_templates.clear()
    with pytest.raises(TemplateError, match="no default chat template"):
        tokenizer.apply_chat_template(CHAT)


def test_our_own_template(tokenizer: SmolLM3Tokenizer) -> None:
    options = {"template": "fixed", "tokenize": False, "add_generation_prompt": True, "date": "2026-11-23"}
    text = tokenizer.apply_chat_template(CHAT, **options)
    assert "23 November 2026" in text
    assert text.count("<|im_start|>system") == text.count("<|im_end|>\n<|im_start|>user") == 1
    with pytest.raises(ParameterError, match="exclude each other"):
        tokenizer.apply_chat_template(CHAT, template="fixed", chat_template="x")
    with pytest.raises(ParameterError, match="'broken'"):
        tokenizer.apply_chat_template(CHAT, template="broken")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"documents": [{"title": "a", "text": "b"}]}, "documents"),
        ({"return_assistant_tokens_mask": True, "return_dict": False}, "return_dict"),
        ({"return_assistant_tokens_mask": True, "tokenize": False}, "tokenize"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "exclude each other"),
        ({"special_tokens": {}}, "special_tokens"),
    ],
)
def test_options_that_could_do_nothing_are_refused(
    tokenizer: SmolLM3Tokenizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ParameterError, TypeError), match=message):
        tokenizer.apply_chat_template(CHAT, **options)


def test_assistant_mask_covers_what_the_template_marks(tokenizer: SmolLM3Tokenizer) -> None:
    chat = [*CHAT, {"role": "assistant", "content": "Hello!"}, *CHAT]
    encoding = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True)
    marked = [idx for idx, on in zip(encoding["input_ids"], encoding["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(marked) == "<|im_start|>assistant\nHello!<|im_end|>\n"


# Loading


def test_settings_override_the_files(folder: Path) -> None:
    tokenizer = SmolLM3Tokenizer.from_pretrained(
        folder, padding_side="left", pad_token="<|im_end|>", model_max_length=7, chat_template="x"
    )
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<|im_end|>")
    assert (tokenizer.model_max_length, tokenizer.chat_template) == (7, "x")
    assert tokenizer.name_or_path == str(folder)
    padded = tokenizer(["a", "b c"], padding=True, return_tensors="np")
    assert padded["input_ids"][0, 0] == tokenizer.eos_token_id
    assert np.array_equal(padded["attention_mask"][0], [0] * (padded["input_ids"].shape[1] - 1) + [1])


@pytest.mark.parametrize(
    "setting", [{"trust_remote_code": True}, {"use_fast": False}, {"paddingside": "left"}]
)
def test_unknown_settings_are_refused(folder: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(setting))):
        SmolLM3Tokenizer.from_pretrained(folder, **setting)


def test_it_saves_and_loads(tokenizer: SmolLM3Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = SmolLM3Tokenizer.from_pretrained(str(tmp_path))
    assert again("Hi <|im_end|>") == tokenizer("Hi <|im_end|>")
    assert again.apply_chat_template(CHAT) == tokenizer.apply_chat_template(CHAT)


def test_small_model_by_its_file(small_model: Path) -> None:
    tokenizer = SmolLM3Tokenizer.from_pretrained(small_model)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True).endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer("Hi", return_tensors="pt")["input_ids"].shape == (1, 1)
    assert tokenizer.eos_token == tokenizer.decode(tokenizer.eos_token_id) == "<|im_end|>"


def test_a_folder_with_one_gguf_file(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(small_model)
    assert SmolLM3Tokenizer.from_pretrained(tmp_path).encode("Hi  2") == [26843, 256, 34]
    (tmp_path / "other.gguf").symlink_to(small_model)
    with pytest.raises(SmolLM3Error, match=r"no tokenizer\.json"):
        SmolLM3Tokenizer.from_pretrained(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SmolLM3Error, match=str(tmp_path)):
        SmolLM3Tokenizer.from_pretrained(tmp_path)
