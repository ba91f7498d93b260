"""The tokenizer as users of Hugging Face's libraries call it: batches, tensors and chat templates.

Encoding itself is `text/tokenizer.py`; here are the call (`tokenizer(texts, padding=True)`), the way
through the chat template, and loading by name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Encoding

from smollm3.batch_encoding import BatchEncoding
from smollm3.errors import ParameterError, PromptError
from smollm3.text.special_tokens import SPECIAL_TOKEN_NAMES
from smollm3.text.tokenizer import Tokenizer
from smollm3.text.tokenizer_bytes import bytes_of_token
from smollm3.text.tokenizer_chat import (
    assistant_mask,
    render_conversations,
    split_conversations,
    template_of,
)
from smollm3.text.tokenizer_files import TOKENIZER_FILE
from smollm3.text.tokenizer_lengths import pad, pad_rows, plan_padding, plan_truncation

_SETTINGS = {*SPECIAL_TOKEN_NAMES, "padding_side", "truncation_side", "model_max_length", "chat_template"}


class SmolLM3Tokenizer(Tokenizer):
    """Tokenizer of SmolLM3 and its kin: `SmolLM3Tokenizer.from_pretrained(name)`, then call it."""

    model_input_names = ("input_ids", "attention_mask")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        subfolder: str | None = None,
        **settings: Any,
    ) -> Self:
        """Load by hub name, short name, folder or GGUF file.

        `settings` override the files: padding_side, truncation_side, model_max_length, chat_template,
        pad_token and the other named special tokens. Nothing in the files is ever run.
        """
        if unknown := sorted(set(settings) - _SETTINGS):
            raise ParameterError(
                f"a tokenizer has no setting {unknown[0]!r}; it has {', '.join(sorted(_SETTINGS))}"
            )
        from smollm3.checkpoint.hub import resolve

        path = resolve(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            subfolder=subfolder,
            weights=False,
        )
        tokenizer = cls.from_path(path)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        for name, value in settings.items():
            setattr(tokenizer, name, value)
        return tokenizer

    @classmethod
    def from_path(cls, path: str | Path) -> Self:
        """Read a folder with a tokenizer.json, a GGUF file, or a folder with nothing but a GGUF file."""
        path = Path(path)
        if (
            path.is_dir()
            and not (path / TOKENIZER_FILE).exists()
            and len(files := [*path.glob("*.gguf")]) == 1
        ):
            path = files[0]
        if path.suffix != ".gguf":
            return cls.from_folder(path)
        from smollm3.checkpoint.gguf import read_metadata

        return cls.from_gguf(read_metadata(path), name_or_path=str(path))

    # Text -> ids

    def encode(self, text: Any, add_special_tokens: bool = True, **options: Any) -> Any:
        """Encode one text to a list of ids; `options` are those of a call (`return_tensors="pt"`, ...)."""
        if not options:
            return super().encode(text, add_special_tokens)
        return self(text, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool = False,
        return_attention_mask: bool = True,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """Encode a text, a pair, or a batch of either.

        `text` is a string, a list of strings or a list of pairs (`is_split_into_words`: lists of words for
        strings); `text_pair` holds the seconds of pairs. `truncation` is True, "only_first" or "only_second".
        With `return_overflowing_tokens` the rest follows in windows that share `stride` ids, and
        `overflow_to_sample_mapping` names each row's input. A single input without `return_tensors` gives
        lists [T], anything else [B, T].
        """
        firsts, seconds, is_batch = _inputs(text, text_pair, is_split_into_words)
        if truncation is None and max_length is not None and padding is False:
            truncation = True  # as in transformers: max_length alone asks for truncation
        cut = plan_truncation(self, truncation, max_length, stride)
        fill = plan_padding(self, padding, max_length, pad_to_multiple_of, padding_side, cut)
        encodings = self.encode_with_offsets(
            firsts,
            seconds,
            add_special_tokens=add_special_tokens,
            truncation=cut,
            is_split_into_words=is_split_into_words,
        )
        if fill is not None:
            pad(encodings, fill)
        rows, sample_of_row = _rows(encodings, with_overflow=return_overflowing_tokens)
        data: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
        if return_token_type_ids:
            data["token_type_ids"] = [_type_ids(row) for row in rows]
        if return_attention_mask:
            data["attention_mask"] = [row.attention_mask for row in rows]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if return_offsets_mapping:
            data["offset_mapping"] = [row.offsets for row in rows]
        if return_length:
            data["length"] = [len(row.ids) for row in rows]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = sample_of_row
        elif not is_batch and return_tensors is None:
            data = {key: value[0] if isinstance(value[0], list) else value for key, value in data.items()}
        return BatchEncoding(data, rows, return_tensors)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Pad rows that are ids already: a dict of lists, or a list of dicts (from a data loader)."""
        rows: Any = encoded_inputs
        if not isinstance(rows, Mapping):
            rows = {key: [row[key] for row in encoded_inputs] for key in encoded_inputs[0]}
        data = {key: _as_list(value) for key, value in rows.items()}
        if not data.get("input_ids"):
            raise PromptError("pad got no input_ids; pass rows of ids")
        is_batch = isinstance(data["input_ids"][0], list)
        if not is_batch:
            data = {key: [value] for key, value in data.items()}
        data.setdefault("attention_mask", [[1] * len(row) for row in data["input_ids"]])
        fill = plan_padding(self, padding, max_length, pad_to_multiple_of, padding_side, None)
        if fill is not None:
            data = pad_rows(data, fill)
        if not is_batch and return_tensors is None:
            data = {key: value[0] for key, value in data.items()}
        return BatchEncoding(data, None, return_tensors)

    # Tokens and ids

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or the ids of several; `unk_token_id` (or None) for one that is not known."""
        if isinstance(tokens, str):
            found = self.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several, as they stand in the vocabulary."""
        listed = _as_list(ids)
        if isinstance(listed, int):
            return self.id_to_token(listed)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.id_to_token(token_id) for token_id in listed if token_id not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that tokens of the vocabulary spell."""
        return b"".join(bytes_of_token(token) for token in tokens).decode("utf-8", "replace")

    def get_special_tokens_mask(self, token_ids: Sequence[int]) -> list[int]:
        """1 for each id of a special token, 0 for the others."""
        special = set(self.all_special_ids)
        return [int(token_id in special) for token_id in token_ids]

    # Chat

    def get_chat_template(self, chat_template: str | None = None, tools: Sequence[Any] | None = None) -> str:
        """The template to use: by name, given as source, or the checkpoint's own."""
        return template_of(self, chat_template, has_tools=tools is not None)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        *,
        template: str | None = None,
        date: Any = None,
        **variables: Any,
    ) -> Any:
        """Render messages (or several lists of them) with the chat template, and encode the result.

        Gives exactly what the checkpoint's template gives; `template="fixed"` is our own for SmolLM3,
        `chat_template` a name or source. `date` pins the date that the template prints; `variables` are the
        template's own (`enable_thinking`, `xml_tools`, ...). Returns text with `tokenize=False`, ids with
        `return_dict=False`, else a `BatchEncoding`, with `assistant_masks` (1 where the assistant speaks) if
        asked for.
        """
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ParameterError("return_assistant_tokens_mask needs tokenize=True and return_dict=True")
        source = template_of(self, chat_template, template=template, has_tools=tools is not None)
        conversations, is_batch = split_conversations(conversation)
        rendered = render_conversations(
            self,
            conversations,
            source,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            date=date,
            tools=tools,
            documents=documents,
            **variables,
        )
        texts = [one.text for one in rendered]
        if not tokenize:
            return texts if is_batch else texts[0]
        encoding = self(
            texts if is_batch else texts[0],
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=False,
            return_tensors=return_tensors,
        )
        if return_assistant_tokens_mask:
            rows = zip(encoding.encodings or (), rendered, strict=True)
            masks = [assistant_mask(row, one.generation_spans) for row, one in rows]
            encoding["assistant_masks"] = masks if is_batch or return_tensors else masks[0]
            encoding.convert_to_tensors(return_tensors)
        return encoding if return_dict else encoding["input_ids"]


def _inputs(text: Any, text_pair: Any, is_split_into_words: bool) -> tuple[list[Any], list[Any] | None, bool]:
    """Split the arguments of a call into firsts, seconds (or None) and whether they are a batch."""
    is_batch = isinstance(text, list | tuple)
    if is_split_into_words:
        is_batch = is_batch and bool(text) and isinstance(text[0], list | tuple)
    if not is_batch:
        return [text], None if text_pair is None else [text_pair], False
    if text_pair is not None:
        if isinstance(text_pair, str) or len(text_pair) != len(text):
            raise PromptError(f"text_pair must be a list of {len(text)} texts, one for each text")
        return list(text), list(text_pair), True
    if not text:
        raise PromptError("the list of texts is empty; pass at least one")
    pairs = [isinstance(item, list | tuple) and not is_split_into_words for item in text]
    if not any(pairs):
        return list(text), None, True
    if not all(pairs) or any(len(item) != 2 for item in text):
        raise PromptError(
            "a batch of pairs must hold two texts in every item (words? pass is_split_into_words=True)"
        )
    return [first for first, _ in text], [second for _, second in text], True


def _rows(encodings: Sequence[Encoding], *, with_overflow: bool) -> tuple[list[Encoding], list[int]]:
    """The encodings, each followed by its overflowing windows if asked for, and each row's input index."""
    rows, sample_of_row = [], []
    for sample_idx, encoding in enumerate(encodings):
        windows = [encoding, *(encoding.overflowing if with_overflow else ())]
        rows += windows
        sample_of_row += [sample_idx] * len(windows)
    return rows, sample_of_row


def _type_ids(row: Encoding) -> list[int]:
    """0 and 1 for the texts of a pair; windows that overflow have not got theirs from the post-processor."""
    return [max(kind, text or 0) for kind, text in zip(row.type_ids, row.sequence_ids, strict=True)]


def _as_list(value: Any) -> Any:
    """Arrays and tensors as (nested) lists; lists of them too."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_as_list(item) for item in value] if isinstance(value, list | tuple) else value
