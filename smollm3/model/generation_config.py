"""GenerationConfig: the fields of a checkpoint's generation_config.json and the arguments of `generate`.

In: a dict, a file or keyword arguments under HF's names. Out: checked values, and SamplingParams. A field
that is None is not set. Fields of a file that nobody knows are kept in `extra`, saved again and never act.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self

from smollm3.engine.params import SamplingParams, check_flag, check_ids, check_number
from smollm3.errors import CheckpointError, ContextOverflowError, ParameterError

FILE_NAME = "generation_config.json"
DEFAULT_MAX_NEW_TOKENS = 256
NO_LIMIT = 2**62  # more tokens than any context
CACHE_IMPLEMENTATIONS = ("dynamic", "static")

# What transformers has and this package has not, with the values at which it changes nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "assistant_model": (),
    "begin_suppress_tokens": (),
    "constraints": (),
    "custom_generate": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "early_stopping": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "inputs_embeds": (),
    "length_penalty": (1,),
    "logits_processor": (),
    "low_memory": (False,),
    "max_time": (),
    "negative_prompt_ids": (),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "past_key_values": (),
    "penalty_alpha": (0,),
    "position_ids": (),
    "prefix_allowed_tokens_fn": (),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "sequence_bias": (),
    "stopping_criteria": (),
    "suppress_tokens": (),
    "synced_gpus": (False,),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}


@dataclass(kw_only=True)
class GenerationConfig:
    """How `generate` goes on from a prompt; see SamplingParams for the sampling fields.

    max_new_tokens: at most so many new tokens; without it (and without max_length) 256, or what the context
        has left if that is less. max_length and min_length count the padded prompt as well; max_new_tokens
        wins over max_length. Asking for more than the context holds is an error, never a truncation.
    top_k, top_p, min_p: off unless set (transformers silently sets top_k=50).
    eos_token_id: one id or several; [] is none. pad_token_id: fills rows on the right; else the first eos id.
    seed: an int for every row, or one per row of the batch.
    cache_implementation: "dynamic" (grows) or "static" (room for everything from the start).
    prompt_lookup_num_tokens: ids to guess at most from what followed the same ids earlier, verified together;
        it changes no id, only how fast they come.
    logprobs: n keeps the chosen id's log-probability and the n likeliest in the returned GenerateOutput.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    num_return_sequences: int | None = None
    stop_strings: str | Sequence[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool | None = None
    cache_implementation: str | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    logprobs: int | None = None
    prompt_lookup_num_tokens: int | None = None
    seed: int | Sequence[int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.validate()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a file's content: unknown fields are kept in `extra`."""
        known = {name: value for name, value in values.items() if name in FIELDS}
        if isinstance(known.get("logit_bias"), Mapping):  # JSON has no integer keys
            known["logit_bias"] = {_as_id(token_id): bias for token_id, bias in known["logit_bias"].items()}
        extra = {name: value for name, value in values.items() if name not in FIELDS and name != "extra"}
        return cls(**known, extra=extra)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Self:
        """Read `folder`/generation_config.json."""
        path = Path(folder) / FILE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): give a folder with a {FILE_NAME}"
            ) from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} holds no JSON object: rewrite it with save_pretrained")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, and the unknown ones of the file this came from."""
        names = (name for name in FIELDS if getattr(self, name) is not None)
        return {**self.extra, **{name: getattr(self, name) for name in names}}

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `folder`/generation_config.json."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (path / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    def merged(self, other: "GenerationConfig | None" = None, **arguments: Any) -> "GenerationConfig":
        """Return a copy in which what `other`, and then the arguments, have set wins. None sets nothing.

        Raises:
            ParameterError: an argument that is unknown (names the closest known one) or not supported.
        """
        values = self.to_dict() | (other.to_dict() if other else {})
        for name, value in arguments.items():
            if name not in FIELDS:
                refuse(name, value)
            elif value is not None:
                values[name] = value
        for name in UNSUPPORTED.keys() & arguments.keys():
            values.pop(name, None)  # refuse() let it pass: it is neutral and wins over the file's
        return GenerationConfig.from_dict(values)

    def validate(self) -> None:
        """Raise ParameterError for a value of the wrong type or outside of its range."""
        most = NO_LIMIT if self.max_new_tokens is None else self.max_new_tokens
        SamplingParams(most, eos_token_ids=self.eos_ids, **self._sampling_values())
        for name in ("max_length", "num_return_sequences"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1, integer=True)
        for name in ("min_length", "bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, integer=True)
        for name in ("use_cache", "return_dict_in_generate"):
            if getattr(self, name) is not None:
                check_flag(name, getattr(self, name))
        if self.cache_implementation not in (None, *CACHE_IMPLEMENTATIONS):
            raise ParameterError(
                f"cache_implementation={self.cache_implementation!r}: give 'dynamic' or 'static'"
            )
        stops = self.stop_strings or ()
        if not isinstance(stops, Sequence) or not all(isinstance(stop, str) and stop for stop in stops):
            raise ParameterError(
                f"stop_strings={self.stop_strings!r}: give a string or several, none of them empty"
            )
        if self.seed is not None and not isinstance(self.seed, int):
            check_ids("seed", self.seed)

    @property
    def stop_list(self) -> list[str]:
        """The stop strings as a list."""
        if self.stop_strings is None:
            return []
        return [self.stop_strings] if isinstance(self.stop_strings, str) else list(self.stop_strings)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The eos ids as a set."""
        if self.eos_token_id is None:
            return frozenset()
        return frozenset(
            self.eos_token_id if isinstance(self.eos_token_id, Iterable) else [self.eos_token_id]
        )

    @property
    def padding_id(self) -> int:
        """The id that fills rows: pad_token_id, else the first eos id, else 0."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        if isinstance(self.eos_token_id, Sequence):
            return self.eos_token_id[0] if self.eos_token_id else 0
        return self.eos_token_id or 0

    def num_new_tokens(self, width: int, context_size: int) -> int:
        """Return how many tokens to generate at most after a prompt of `width` ids."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is not None:
            if self.max_length <= width:
                raise ParameterError(
                    f"max_length={self.max_length} leaves nothing to generate after a prompt of {width} ids: "
                    "raise it, or pass max_new_tokens"
                )
            return self.max_length - width
        if width >= context_size:
            raise ContextOverflowError(
                f"prompt of {width} ids leaves nothing of the context of {context_size}: shorten the prompt"
            )
        return min(DEFAULT_MAX_NEW_TOKENS, context_size - width)

    def sampling_params(self, max_new_tokens: int, width: int, seed: int | None = None) -> SamplingParams:
        """Return what the engine needs to know; `width` is the length of the padded prompt."""
        values = self._sampling_values()
        if self.min_length is not None:
            values["min_new_tokens"] = max(values.get("min_new_tokens", 0), self.min_length - width)
        return SamplingParams(max_new_tokens, eos_token_ids=self.eos_ids, seed=seed, **values)

    def _sampling_values(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        return values | {"prompt_lookup": self.prompt_lookup_num_tokens is not None}


FIELDS = tuple(item.name for item in dataclasses.fields(GenerationConfig) if item.name != "extra")
_SAMPLING = tuple(
    item.name
    for item in dataclasses.fields(SamplingParams)
    if item.name in FIELDS and item.name not in ("max_new_tokens", "seed")
)


def _as_id(key: Any) -> Any:
    """JSON writes the ids of a mapping as strings."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def refuse(name: str, value: Any) -> None:
    """Raise ParameterError unless `name` is a field of transformers at a value that changes nothing."""
    if name not in UNSUPPORTED:
        close = difflib.get_close_matches(
            name, [*FIELDS, "attention_mask", "input_ids", "streamer", "tokenizer"], 1, 0.3
        )
        hint = f"did you mean {close[0]}?" if close else "see GenerationConfig for those that exist"
        raise ParameterError(f"generate knows no argument {name!r}: {hint}")
    neutral = (None, *UNSUPPORTED[name])
    if not any(value is choice or (choice is not None and value == choice) for choice in neutral):
        others = " or ".join(repr(choice) for choice in UNSUPPORTED[name]) or "None"
        raise ParameterError(f"{name}={value!r} is not supported by generate: leave it out or pass {others}")
