"""The body of /v1/completions: a prompt as text or token ids, or several, and how to go on from each."""

from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from smollm3.server.fields import only, refuse
from smollm3.server.sampling_fields import MAX_INT, MAX_TOP_LOGPROBS, NotSupported, SamplingFields

MAX_PROMPTS = 128


def read_texts_or_ids(value: object, limit: int = MAX_PROMPTS) -> object:
    """Turn a text, texts, ids or lists of ids into a list of texts or of lists of ids."""
    if isinstance(value, str):
        _check(value, "")
        return [value]
    if not isinstance(value, list) or not value:
        refuse("must be a text, texts, token ids or lists of token ids, not empty")
    if type(value[0]) is int:
        _check(value, "")
        return [value]
    if len(value) > limit:
        refuse(f"has {len(value)} entries: send at most {limit}")
    for idx, item in enumerate(value):
        if type(item) is not type(value[0]):
            refuse("mixes texts and token ids: send one kind", f"[{idx}]")
        _check(item, f"[{idx}]")
    return value


def _check(item: object, field: str) -> None:
    if isinstance(item, str):
        if not item.strip():
            refuse("has no text: send at least one character that is no blank", field)
        try:
            item.encode()
        except UnicodeEncodeError:
            refuse("must be whole characters", field)
    elif not isinstance(item, list) or not item:
        refuse("must be a text or a list of token ids, not empty", field)
    else:
        for place, token_id in enumerate(item):
            if type(token_id) is not int or not 0 <= token_id < 2**31:
                refuse("must be a token id", f"{field}[{place}]")


TextsOrIds = Annotated[object, BeforeValidator(read_texts_or_ids)]


class CompletionRequest(SamplingFields):
    """The request; extensions are top_k, min_p, repetition_penalty, prompt_lookup and cache_salt."""

    prompt: TextsOrIds
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    prompt_lookup: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    # OpenAI's that this server has not.
    best_of: Annotated[object, AfterValidator(only(None, 1))] = None
    suffix: NotSupported = None

    @property
    def prompts(self) -> list[str | list[int]]:
        assert isinstance(self.prompt, list)
        return self.prompt

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are wanted."""
        return bool(self.echo) and self.logprobs is not None

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.max_tokens == 0 and not self.scores_prompt:
            refuse("0 only scores a prompt, with echo and logprobs: send both, or at least 1", "max_tokens")
        return self
