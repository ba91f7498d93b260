"""Text in, token ids out, and back: byte-level BPE over the `tokenizers` library.

Built from a folder (tokenizer.json and its neighbours) or from a GGUF's metadata. Knows no torch, no model
and no prompt format. Encoding never changes the tokenizer, so one tokenizer serves many threads.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, overload

from tokenizers import AddedToken, Encoding, decoders, models, processors
from tokenizers import Tokenizer as Backend

from smollm3.errors import CheckpointError, ParameterError, PromptError
from smollm3.text.gguf_tokenizer import read_gguf_tokenizer
from smollm3.text.special_tokens import as_added_token, extra_special_tokens, named_special_tokens
from smollm3.text.tokenizer_bytes import without_tokens
from smollm3.text.tokenizer_files import CONFIG_FILE, read_tokenizer_files, write_tokenizer_files
from smollm3.text.tokenizer_lengths import SIDES, UNLIMITED, Truncation, truncate
from smollm3.text.tokenizer_vocabulary import Vocabulary, checked_ids


class Tokenizer(Vocabulary):
    """A byte-level BPE tokenizer; see `from_folder` and `from_gguf`."""

    def __init__(
        self,
        backend: Backend,
        *,
        special_tokens: Mapping[str, str] | None = None,
        extra_special_tokens: Sequence[str] = (),
        chat_templates: Mapping[str, str] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        name_or_path: str = "",
    ) -> None:
        """Take `backend` over: its own padding, truncation and post-processor are moved out of it."""
        if not isinstance(backend.model, models.BPE) or not isinstance(backend.decoder, decoders.ByteLevel):
            raise CheckpointError(
                f"{name_or_path or 'tokenizer'}: a {type(backend.model).__name__} tokenizer with decoder "
                f"{type(backend.decoder).__name__}; only byte-level BPE (SmolLM, Llama 3, GPT-2) is supported"
            )
        backend.no_padding()
        backend.no_truncation()
        # Applied after truncation: set on the backend, both would change what other threads get.
        self._post_processor = backend.post_processor or processors.TemplateProcessing(
            single="$A:0", pair="$A:0 $B:1", special_tokens=[]
        )
        backend.post_processor = None
        super().__init__(backend, special_tokens or {}, extra_special_tokens)
        self.chat_templates = dict(chat_templates or {})
        self.model_max_length = UNLIMITED if model_max_length is None else model_max_length
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.name_or_path = name_or_path

    @classmethod
    def from_folder(cls, path: str | Path) -> Self:
        """Read a folder: tokenizer.json and what lies beside it (settings, special tokens, templates)."""
        folder = Path(path)
        files = read_tokenizer_files(folder)
        config, where, backend = files.config, str(folder / CONFIG_FILE), files.backend
        named = named_special_tokens(config, where=where)
        extra = extra_special_tokens(config, where=where)
        _add_missing(backend, config.get("added_tokens_decoder") or {}, [*named.values(), *extra], where)
        baked = backend.padding or {}
        if "pad_token" not in named and baked:
            named["pad_token"] = as_added_token(baked["pad_token"], where=where)
        return cls(
            backend,
            special_tokens={name: token.content for name, token in named.items()},
            extra_special_tokens=[token.content for token in extra],
            chat_templates=files.chat_templates,
            model_max_length=_whole_number(config, "model_max_length", where),
            padding_side=config.get("padding_side", baked.get("direction", "right")),
            truncation_side=config.get(
                "truncation_side", (backend.truncation or {}).get("direction", "right")
            ),
            name_or_path=str(path),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, name_or_path: str = "") -> Self:
        """Build the tokenizer that a GGUF file's metadata (key -> value) describes."""
        found = read_gguf_tokenizer(metadata)
        return cls(
            found.backend,
            special_tokens=found.special_tokens,
            chat_templates=found.chat_templates,
            model_max_length=found.model_max_length,
            name_or_path=name_or_path,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"len={len(self)}, model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"special_tokens={self.special_tokens})"
        )

    @property
    def padding_side(self) -> str:
        """Where padding goes: "left" or "right"."""
        return self._padding_side

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        self._padding_side = _checked_side("padding_side", side)

    @property
    def truncation_side(self) -> str:
        """Where truncation cuts: "left" or "right"."""
        return self._truncation_side

    @truncation_side.setter
    def truncation_side(self, side: str) -> None:
        self._truncation_side = _checked_side("truncation_side", side)

    @property
    def chat_template(self) -> str | None:
        """The default chat template; `chat_templates` has all of them by name."""
        return self.chat_templates.get("default")

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self.chat_templates.pop("default", None)
        if template is not None:
            self.chat_templates["default"] = template

    # Text -> ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode one text; special and added tokens spelled in it become their ids."""
        encoding = self._encode_pieces([text], fast=True)[0]
        if add_special_tokens and self.num_special_tokens_to_add():
            encoding = self._post_processor.process(encoding, None, True)
        return list(encoding.ids)

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Encode several texts, each as `encode` does, on all cores."""
        encodings = self._encode_pieces(texts, fast=True)
        if add_special_tokens and self.num_special_tokens_to_add():
            encodings = [self._post_processor.process(encoding, None, True) for encoding in encodings]
        return [list(encoding.ids) for encoding in encodings]

    def encode_plain(self, text: str) -> list[int]:
        """Encode text as nothing but text: special and added tokens that it spells are cut like words.

        For content that others wrote: `<|im_end|>` in it cannot end a turn. Equals `encode` without special
        tokens on a text that spells none.
        """
        _check_texts([text])
        return list(self._plain_backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def encode_with_offsets(
        self,
        firsts: Sequence[Any],
        seconds: Sequence[Any] | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: Truncation | None = None,
        is_split_into_words: bool = False,
    ) -> list[Encoding]:
        """Encode a batch of texts, or of pairs, to `tokenizers.Encoding`s (ids, offsets, masks, overflow)."""
        pieces = self._encode_pieces(firsts, is_split_into_words=is_split_into_words)
        others: Sequence[Encoding | None] = [None] * len(pieces)
        if seconds is not None:
            others = self._encode_pieces(seconds, is_split_into_words=is_split_into_words)
        num_added = self.num_special_tokens_to_add(seconds is not None) if add_special_tokens else 0
        encodings = []
        for first, second in zip(pieces, others, strict=True):
            if truncation is not None:
                truncate(first, second, truncation, num_added=num_added)
            encodings.append(self._post_processor.process(first, second, add_special_tokens))
        return encodings

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens `add_special_tokens=True` adds to a text, or to a pair."""
        return self._post_processor.num_special_tokens_to_add(pair)

    def min_tokens(self, text: str) -> int:
        """A lower bound, found at once, of the number of ids: the text's bytes over the longest token's."""
        return -(-len(text.encode("utf-8", "surrogatepass")) // self._longest_token)

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """Encode to tokens instead of ids."""
        return list(self.encode_with_offsets([text], add_special_tokens=add_special_tokens)[0].tokens)

    def _encode_pieces(
        self, texts: Sequence[Any], *, fast: bool = False, is_split_into_words: bool = False
    ) -> list[Encoding]:
        _check_texts(texts, is_split_into_words=is_split_into_words)
        encode = self._backend.encode_batch_fast if fast else self._backend.encode_batch
        return encode(list(texts), is_pretokenized=is_split_into_words, add_special_tokens=False)

    @cached_property
    def _plain_backend(self) -> Backend:
        """The same merges without added tokens; the model is shared unless merges alone can yield one."""
        plain = Backend(self._backend.model)
        plain.pre_tokenizer = self._backend.pre_tokenizer
        if self._backend.normalizer is not None:
            plain.normalizer = self._backend.normalizer
        added = self.added_tokens_encoder
        reachable = {
            token for token, idx in added.items() if idx in plain.encode(token).ids and not token.isspace()
        }
        return without_tokens(plain, reachable) if reachable else plain

    # Ids -> text

    @overload
    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = ...) -> str: ...

    @overload
    def decode(self, token_ids: Sequence[Sequence[int]], skip_special_tokens: bool = ...) -> list[str]: ...

    @overload
    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> Any: ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """Turn ids (an int, a list, an array, a tensor) into text; nested ids into a list of texts.

        Bytes that are no UTF-8 become U+FFFD. Ids beyond the vocabulary (padded embeddings) give nothing.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        if len(ids) and hasattr(ids[0], "__len__") and not isinstance(ids[0], str):
            return [self.decode(row, skip_special_tokens) for row in ids]
        return self._backend.decode(checked_ids(ids), skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """Decode each row of a list, array or tensor of ids."""
        texts = self.decode(sequences, skip_special_tokens)
        return [texts] if isinstance(texts, str) else list(texts)

    # Saving

    def state(self) -> dict[str, Any]:
        """Return the contents of tokenizer.json."""
        state: dict[str, Any] = json.loads(self._backend.to_str())
        state["post_processor"] = json.loads(self._post_processor.__getstate__())
        return state

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]:
        """Write tokenizer.json and its neighbours, which transformers opens too; return the paths."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "clean_up_tokenization_spaces": False,
            **self.special_tokens_map,
        }
        special_tokens = dict(self.special_tokens)
        return write_tokenizer_files(
            Path(save_directory), self.state(), config, special_tokens, self.chat_templates
        )


def _add_missing(
    backend: Backend, decoder: Mapping[str, Any], special_tokens: Iterable[AddedToken], where: str
) -> None:
    """Add the tokens that tokenizer_config.json lists and tokenizer.json does not match whole in a text."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = sorted(
        (int(token_id), as_added_token(value, where=where, special=False))
        for token_id, value in decoder.items()
    )
    for token_id, token in listed:
        if token.content not in known:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != token_id:
            raise CheckpointError(
                f"{where}: added token {token.content!r} has id {token_id} there and "
                f"{backend.token_to_id(token.content)} in tokenizer.json; use files of one checkpoint"
            )
    known |= {token.content for _, token in listed}
    for token in special_tokens:
        if token.content not in known:
            backend.add_special_tokens([token])


def _whole_number(config: Mapping[str, Any], key: str, where: str) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise CheckpointError(f"{where}: {key} is {value!r}, not a positive number")
    return int(value)


def _checked_side(name: str, side: str) -> str:
    if side not in SIDES:
        raise ParameterError(f"{name} is {side!r}; choose 'left' or 'right'")
    return side


def _check_texts(texts: Sequence[Any], *, is_split_into_words: bool = False) -> None:
    """Refuse what is no text; a lone surrogate has no bytes and so no ids."""
    for text in texts:
        if is_split_into_words and isinstance(text, list | tuple):
            _check_texts(text)
        elif not isinstance(text, str) or is_split_into_words:
            raise PromptError(f"text is a {type(text).__name__}, not a string; pass strings to the tokenizer")
        elif not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise PromptError(
                    f"text has a lone surrogate at character {error.start}: it has no bytes; remove it"
                ) from error
