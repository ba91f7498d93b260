"""What a request asks of the model, and what comes back: plain frozen data between endpoints and service.

`Work` goes in, `Event`s come out, one per choice and engine step; streams and whole answers are both made of
them. None of OpenAI's words are used here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smollm3.engine.params import SamplingParams
from smollm3.engine.reading import PromptScores
from smollm3.text.parser import Delta

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ParseOptions:
    """How to split an answer: `thinking_open` when the prompt ends inside `<think>`; which tags are calls."""

    thinking_open: bool = False
    tool_calls: bool = True
    code: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What one request asks of the model.

    prompt_ids, params: checked by `Service.check`; params.eos_token_ids end an answer and are never shown.
    num_choices: answers to the one prompt. stop: strings before which an answer ends.
    parse: None leaves the text as it is, as content.
    salt: the past of a prompt is reused only between equal salts.
    with_tokens: events carry their tokens also where params.logprobs is None.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    num_choices: int = 1
    stop: tuple[str, ...] = ()
    parse: ParseOptions | None = None
    salt: str = ""
    with_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One id of an answer; `top` are the likeliest ids at its place, with their log-probabilities."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What one engine step did to one choice.

    deltas: may be empty, while a character or a tag is not complete.
    tokens: the step's ids; empty unless the work asks for logprobs or tokens.
    finish_reason, stop_string: on a choice's last event; stop_string if that is what ended it.
    num_generated, num_reasoning: ids so far, of this choice; the second counts those of thoughts.
    num_reused: ids of the prompt that came from the cache.
    prompt_scores: on a choice's first event, where the work asks for them; it may have no token then.
    """

    choice_idx: int
    deltas: tuple[Delta, ...]
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    num_generated: int = 0
    num_reasoning: int = 0
    num_reused: int = 0
    prompt_scores: PromptScores | None = None
