"""The one path from prompt ids to streamed text: generate, detokenize, match stop strings, keep time.

In: a model, its tokenizer, prompts of ids and the arguments of `generate`. Out: an iterator of chunks, one
per token, that whoever pulls it may leave at any time: closing it cancels. Knows no messages and no template.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from smollm3.engine.runner import Runner
from smollm3.engine.sample import TokenOutput
from smollm3.errors import PromptError
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.text.answer import AnswerText
from smollm3.text.parser import Delta, ResponseParser
from smollm3.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class CompletionChunk:
    """One token of one answer.

    text: what is certain and safe to show by now; may be empty, and leaves stop strings out. With a parser
        it is the content alone, and `deltas` has all parts.
    prompt_idx, sample_idx: which prompt, and which of its `num_return_sequences` answers.
    finish_reason: on an answer's last chunk: "stop" (an eos id or a stop string) or "length".
    stop_string: the stop string that ended it, on that chunk.
    seconds, first_token_seconds: since the first chunk was asked for, to this token and to the answer's
        first.
    """

    text: str
    token_id: int
    num_prompt: int
    num_generated: int
    seconds: float
    first_token_seconds: float
    prompt_idx: int = 0
    sample_idx: int = 0
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_string: str | None = None
    deltas: tuple[Delta, ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """How fast tokens came after the first; None while there is no second."""
        passed = self.seconds - self.first_token_seconds
        return (self.num_generated - 1) / passed if self.num_generated > 1 and passed > 0 else None


@dataclass
class _Answer:
    """What one answer needs between its tokens."""

    text: AnswerText
    num_generated: int = 0
    first_token_seconds: float = field(default=0.0)

    def take(self, output: TokenOutput, seconds: float, num_prompt: int) -> CompletionChunk:
        self.num_generated += 1
        if self.num_generated == 1:
            self.first_token_seconds = seconds
        deltas = self.text.push(output.token_id)
        if output.finish_reason is not None:
            deltas = deltas + self.text.finish()
        return CompletionChunk(
            text="".join(delta.text for delta in deltas if delta.kind == "content"),
            token_id=output.token_id,
            num_prompt=num_prompt,
            num_generated=self.num_generated,
            seconds=seconds,
            first_token_seconds=self.first_token_seconds,
            prompt_idx=output.request_idx,
            sample_idx=output.sample_idx,
            logprob=output.logprob,
            top_logprobs=output.top_logprobs,
            finish_reason=output.finish_reason,
            stop_string=self.text.stop_string if output.finish_reason is not None else None,
            deltas=tuple(deltas),
        )


def stream(
    model: SmolLM3ForCausalLM,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int] | Sequence[Sequence[int]],
    generation_config: GenerationConfig | None = None,
    *,
    skip_special_tokens: bool = True,
    parser: ResponseParser | None = None,
    runner: Runner | None = None,
    **arguments: Any,
) -> Iterator[CompletionChunk]:
    """Return an iterator over the answers' chunks, in the order in which their tokens come.

    Args:
        prompt_ids: one prompt, or several that run as one batch.
        generation_config, arguments: as for `model.generate`: max_new_tokens, temperature, stop_strings,
            seed, ...
        skip_special_tokens: leave special tokens, such as the one that ends a turn, out of the text.
        parser: splits the text of a single answer; whoever leaves early asks it for what it held back.
        runner: one of `model.new_runner()`, so that what earlier calls took in is not computed again.

    Raises, before anything runs:
        PromptError: a prompt without ids.
        ContextOverflowError: a prompt that with max_new_tokens is over the context.
        ParameterError: an argument that is unknown or out of range.
    """
    prompts = _as_prompts(prompt_ids)
    config = (generation_config or GenerationConfig()).merged(**arguments)
    outputs = model.stream(prompts, config, tokenizer=tokenizer, runner=runner)
    stops = config.stop_list or model.generation_config.stop_list
    eos_ids = _eos_ids(model, config) if skip_special_tokens else frozenset()

    def new_answer() -> _Answer:
        return _Answer(
            AnswerText(
                tokenizer,
                stop_strings=stops,
                parser=parser,
                eos_token_ids=eos_ids,
                skip_special_tokens=skip_special_tokens,
            )
        )

    return _chunks(outputs, prompts, new_answer)


def _eos_ids(model: SmolLM3ForCausalLM, config: GenerationConfig) -> frozenset[int]:
    of_model = GenerationConfig(eos_token_id=model.config.eos_token_id)
    known = (config, model.generation_config, of_model)
    return next((source.eos_ids for source in known if source.eos_token_id is not None), frozenset())


def _as_prompts(prompt_ids: Any) -> list[list[int]]:
    ids = list(prompt_ids)
    if not ids:
        raise PromptError("the prompt is empty: give at least one token id")
    prompts = [list(row) for row in ids] if isinstance(ids[0], Sequence) else [ids]
    for place, prompt in enumerate(prompts):
        if not prompt:
            where = "the prompt" if len(prompts) == 1 else f"prompt {place}"
            raise PromptError(f"{where} is empty: give at least one token id")
    return prompts


def _chunks(
    outputs: Iterator[TokenOutput],
    prompts: list[list[int]],
    new_answer: Callable[[], _Answer],
) -> Iterator[CompletionChunk]:
    answers: dict[tuple[int, int], _Answer] = {}
    began = time.perf_counter()
    try:
        for output in outputs:
            key = (output.request_idx, output.sample_idx)
            if key not in answers:
                answers[key] = new_answer()
            seconds = time.perf_counter() - began
            yield answers[key].take(output, seconds, len(prompts[output.request_idx]))
    finally:
        close = getattr(outputs, "close", None)
        if close is not None:
            close()
