"""The fields by which every endpoint's client says how tokens are chosen, and what they mean to the engine.

In: OpenAI's names and a few more. Out: SamplingParams, with the checkpoint's generation_config.json for what
is left out. Knows no endpoint and no prompt but its length.
"""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from smollm3.engine.params import SamplingParams
from smollm3.model.generation_config import GenerationConfig
from smollm3.server.errors import RequestError
from smollm3.server.fields import Fields, only, refuse

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_INT = 2**63 - 1
_DRAWS = ("temperature", "top_p", "top_k", "min_p")


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _bias_ids(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            refuse('keys are token ids, such as "42"', key)
    return bias


StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[list[StopText], Field(max_length=MAX_STOPS, fail_fast=True), BeforeValidator(_as_list)]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024), AfterValidator(_bias_ids)
]
MaxTokens = Annotated[int, Field(ge=1, le=MAX_INT)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Label = Annotated[str, Field(max_length=512)]
NotSupported = Annotated[object, AfterValidator(only(None))]
OnlyFalse = Annotated[object, AfterValidator(only(None, False))]


class StreamOptions(Fields):
    """What a stream brings besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: OnlyFalse = None


class DrawFields(Fields):
    """How a token is drawn; extensions to OpenAI's are top_k, min_p and repetition_penalty."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-MAX_INT - 1, le=MAX_INT)] | None = None
    logit_bias: LogitBias | None = None


class SamplingFields(DrawFields):
    """What chat and plain completions share."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: MaxTokens | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Label | None = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            refuse("goes with stream=true alone: leave it out", "stream_options")
        return self


def sampling_params(
    fields: DrawFields,
    defaults: GenerationConfig,
    *,
    max_new_tokens: int,
    eos_token_ids: frozenset[int],
    vocab_size: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    constraint: Any = None,
    prompt_lookup: bool | None = None,
) -> SamplingParams:
    """Return what the engine needs to know.

    Asking for a way to draw (temperature, top_p, top_k, min_p) asks for drawing unless temperature is 0.
    """
    names = (*_DRAWS, "repetition_penalty", "presence_penalty", "frequency_penalty")
    values: dict[str, Any] = {
        name: asked if (asked := getattr(fields, name)) is not None else getattr(defaults, name)
        for name in names
    }
    values = {name: value for name, value in values.items() if value is not None}
    asks = any(getattr(fields, name) is not None for name in _DRAWS)
    do_sample = (True if asks else bool(defaults.do_sample)) and fields.temperature != 0
    if fields.logit_bias is not None:
        values["logit_bias"] = _bias(fields.logit_bias, vocab_size)
    elif defaults.logit_bias:
        values["logit_bias"] = defaults.logit_bias
    if defaults.bad_words_ids:
        values["bad_words_ids"] = defaults.bad_words_ids
    return SamplingParams(
        max_new_tokens,
        do_sample=do_sample,
        eos_token_ids=eos_token_ids,
        seed=fields.seed,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        constraint=constraint,
        prompt_lookup=bool(prompt_lookup),
        **values,
    )


def _bias(bias: dict[str, float], vocab_size: int) -> dict[int, float]:
    largest = max(map(int, bias), default=0)
    if largest >= vocab_size:
        raise RequestError(
            f"logit_bias: there is no token id {largest}: give ids 0 to {vocab_size - 1}",
            param=f"logit_bias.{largest}",
        )
    return {int(token_id): value for token_id, value in bias.items()}
