"""Prompt ids equal transformers': its templating and its cleaning of control tokens, on one tokenizer."""

import copy
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from smollm3.text.messages import normalise
from smollm3.text.prompt import prompt_ids
from smollm3.text.tokenizer import Tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|im_start|>", "<|im_end|>"]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


def make_backend() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["user assistant system think tool_call <|im_start|> im_end"] * 3, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    backend.add_tokens([AddedToken(token, normalized=False) for token in TAGS])
    return backend


BACKEND = make_backend()
OURS = Tokenizer(
    copy.deepcopy(BACKEND), special_tokens={"eos_token": "<|im_end|>"}, chat_templates={"default": CHATML}
)
THEIRS = PreTrainedTokenizerFast(tokenizer_object=BACKEND, eos_token="<|im_end|>", chat_template=CHATML)
TEXT = st.lists(
    st.sampled_from([*SPECIALS, *TAGS, "<", ">", "|im_end", "think", " ", "\n", "é", "👋", "user", "a"]),
    max_size=8,
).map("".join)


def theirs(chat: list[dict[str, Any]], **options: Any) -> list[int]:
    ids: list[int] = THEIRS.apply_chat_template(chat, tokenize=True, return_dict=False, **options)
    return ids


@settings(max_examples=100)
@given(TEXT, TEXT, TEXT, st.booleans())
def test_everything_special_equals_transformers(first: str, second: str, third: str, prompt: bool) -> None:
    chat = [
        {"role": "system", "content": first},
        {"role": "user", "content": second},
        {"role": "assistant", "content": third},
    ]
    ours = prompt_ids(OURS, chat, add_generation_prompt=prompt, allow_special=True)
    assert ours == theirs(chat, add_generation_prompt=prompt)


@settings(max_examples=100)
@given(TEXT, TEXT)
def test_nothing_special_equals_transformers_cleaned(first: str, second: str) -> None:
    """transformers cleans when told to, tokens flagged special only; ours always, and the tags as well."""
    chat = [{"role": "system", "content": first}, {"role": "user", "content": second}]
    expected = theirs(chat, add_generation_prompt=True, sanitize_control_tokens=True)
    ours = prompt_ids(OURS, chat)
    assert OURS.decode(ours) == OURS.decode(expected)
    special = {OURS.added_tokens[token] for token in SPECIALS}
    assert [idx for idx in ours if idx in special] == [idx for idx in expected if idx in special]
    assert special.issuperset(set(ours) & set(OURS.added_tokens.values()))


@pytest.mark.parametrize("which", ["deployed", "chatml"])
@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "user", "content": "Hi there, x < y"}],
        [{"role": "system", "content": "Brief. /no_think"}, {"role": "user", "content": "Hi\n\n<b>"}],
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "reasoning_content": "hm", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "parts"}]},
        ],
    ],
)
def test_chats_equal_transformers_on_normalised_messages(
    deployed_chat_template: str, which: str, chat: list[dict[str, Any]]
) -> None:
    source = {"deployed": deployed_chat_template, "chatml": CHATML}[which]
    source = source.replace('strftime_now("%d %B %Y")', '"today"')
    expected = theirs(normalise(chat), chat_template=source, add_generation_prompt=True)
    assert prompt_ids(OURS, chat, template=source) == expected
