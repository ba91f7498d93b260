"""Texts and chats to what the model says next.

A text is continued as it stands; a chat goes through `text.prompt`, the one path from messages to ids. Both
run through `completion`, several to a batch, and come back in the structure of transformers' pipeline.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch

from smollm3.completion import CompletionChunk, stream
from smollm3.engine.params import check_flag
from smollm3.errors import ParameterError, PromptError
from smollm3.model.generation_config import FIELDS, UNSUPPORTED, GenerationConfig
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.pipelines.pipeline import Pipeline, unknown_argument
from smollm3.text.messages import normalise
from smollm3.text.prompt import prompt_ids

# As in transformers' pipeline, where neither the checkpoint nor the caller says anything.
DEFAULTS = GenerationConfig(do_sample=True, temperature=0.7)
_OF_GENERATE = ("logprobs", "output_logits", "output_scores", "return_dict_in_generate")


@dataclass(frozen=True)
class TextGenerationOptions:
    """What a call may ask for, besides the fields of GenerationConfig (max_new_tokens, temperature, ...).

    return_full_text: put the prompt before the answer (default); return_text: the answer alone if False;
        return_tensors: ids of both instead of text. At most one of the three.
    continue_final_message: go on with the last message; by default when it is the assistant's.
    tools, xml_tools, python_tools, enable_thinking, date, template: what the chat template is given, and
        which one it is (None: the checkpoint's; "fixed": ours for SmolLM3; or the text of one).
    chat_template_kwargs: more variables for it.
    prefix, add_special_tokens: for texts: what to put before each, and whether the tokenizer adds its own.
    skip_special_tokens: leave special tokens out of the answer's text.
    streamer: is handed the ids of one answer as they come.
    """

    return_full_text: bool | None = None
    return_text: bool | None = None
    return_tensors: bool | None = None
    continue_final_message: bool | None = None
    tools: Sequence[Any] | None = None
    xml_tools: Sequence[Any] | None = None
    python_tools: Sequence[Any] | None = None
    enable_thinking: bool | None = None
    date: Any = None
    template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    prefix: str = ""
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    streamer: Any = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        for name in (
            "return_full_text",
            "return_text",
            "return_tensors",
            "continue_final_message",
            "enable_thinking",
        ):
            if getattr(self, name) is not None:
                check_flag(name, getattr(self, name))
        for name in ("add_special_tokens", "skip_special_tokens"):
            check_flag(name, getattr(self, name))
        if not isinstance(self.prefix, str):
            raise ParameterError(f"prefix={self.prefix!r}: give a text")
        returns = [name for name in _RETURNS if getattr(self, name) is not None]
        if len(returns) > 1:
            raise ParameterError(f"{returns[0]} and {returns[1]} exclude each other: give one")

    @property
    def template_arguments(self) -> dict[str, Any]:
        """The arguments for the chat template that were given."""
        values = {name: getattr(self, name) for name in _TEMPLATE}
        return {
            **(self.chat_template_kwargs or {}),
            **{k: value for k, value in values.items() if value is not None},
        }


_RETURNS = ("return_full_text", "return_text", "return_tensors")
_TEMPLATE = ("tools", "xml_tools", "python_tools", "enable_thinking", "date", "template")
_OWN = tuple(item.name for item in fields(TextGenerationOptions) if item.name != "generation")


class TextGenerationPipeline(Pipeline[TextGenerationOptions]):
    """`pipe("a text")`, `pipe([{"role": "user", "content": ...}])`, lists and iterators of either."""

    task = "text-generation"
    accepts = "a text or a chat (a list of messages with a 'role')"

    def defaults(self) -> TextGenerationOptions:
        return TextGenerationOptions()

    def choose(self, options: TextGenerationOptions, given: Mapping[str, Any]) -> TextGenerationOptions:
        known = {*_OWN, *FIELDS, "generation_config", "stop_sequence"}
        for name, value in given.items():
            if name not in known and name not in UNSUPPORTED:
                raise unknown_argument(self.task, name, known)
            if name in _OF_GENERATE and value not in (None, False):
                raise ParameterError(f"{name} has no place in a pipeline's result: call model.generate")
        own = {name: value for name, value in given.items() if name in _OWN}
        rest = {name: value for name, value in given.items() if name not in _OWN}
        if (stop := rest.pop("stop_sequence", None)) is not None:
            if rest.get("stop_strings") is not None:
                raise ParameterError(
                    "stop_sequence and stop_strings are two spellings of one thing: give one"
                )
            rest["stop_strings"] = stop
        if any(own.get(name) is not None for name in _RETURNS):  # what a call asks for replaces, not joins
            own = {**dict.fromkeys(_RETURNS), **own}
        generation = options.generation.merged(rest.pop("generation_config", None), **rest)
        return replace(options, **own, generation=generation)

    def is_single(self, inputs: object, options: TextGenerationOptions) -> bool:
        if isinstance(inputs, str):
            return True
        return (
            isinstance(inputs, list | tuple)
            and bool(inputs)
            and all(isinstance(item, Mapping) for item in inputs)
        )

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """Generate: for each input a list of `{"generated_text": ...}`, one for each of num_return_sequences.

        For a text that is the text with its continuation; for a chat, its messages with the answer as the
        last (`outputs[0]["generated_text"][-1]["content"]`). Raises PromptError, ContextOverflowError,
        ParameterError.
        """
        return super().__call__(inputs, batch_size=batch_size, **options)

    def stream(self, inputs: Any, **options: Any) -> Iterator[CompletionChunk]:
        """Return an iterator over the answer to one text or chat, as it comes; closing it cancels."""
        chosen = self.choose(self.options, options)
        if not self.is_single(inputs, chosen):
            raise PromptError(f"stream takes one input, {self.accepts}")
        return self._stream_ids([self._prompt_ids(inputs, chosen)], chosen)

    def run(self, inputs: list[Any], options: TextGenerationOptions) -> Iterable[Any]:
        prompts = [self._prompt_ids(item, options) for item in inputs]
        num_samples = self._generation(options).num_return_sequences or 1
        if options.streamer is not None and len(prompts) * num_samples > 1:
            raise ParameterError("a streamer follows one answer: drop batch_size and num_return_sequences")
        answers: list[list[list[int]]] = [[[] for _ in range(num_samples)] for _ in prompts]
        for chunk in _shown(self._stream_ids(prompts, options), prompts[0], options.streamer):
            answers[chunk.prompt_idx][chunk.sample_idx].append(chunk.token_id)
        for item, prompt, samples in zip(inputs, prompts, answers, strict=True):
            yield [self._record(item, prompt, token_ids, options) for token_ids in samples]

    @property
    def causal_model(self) -> SmolLM3ForCausalLM:
        """The model, as what it is."""
        return cast(SmolLM3ForCausalLM, self.model)

    def _generation(self, options: TextGenerationOptions) -> GenerationConfig:
        return DEFAULTS.merged(self.causal_model.generation_config).merged(options.generation)

    def _stream_ids(
        self, prompts: list[list[int]], options: TextGenerationOptions
    ) -> Iterator[CompletionChunk]:
        return stream(
            self.causal_model,
            self.tokenizer,
            prompts,
            self._generation(options),
            skip_special_tokens=options.skip_special_tokens,
        )

    def _prompt_ids(self, item: Any, options: TextGenerationOptions) -> list[int]:
        if isinstance(item, str):
            if not options.prefix + item:
                raise PromptError("the prompt is empty: give a text with at least one character")
            return list(self.tokenizer.encode(options.prefix + item, options.add_special_tokens))
        continues = _continues(item, options)
        return prompt_ids(
            self.tokenizer,
            item,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            **options.template_arguments,
        )

    def _record(
        self, item: Any, prompt: list[int], token_ids: list[int], options: TextGenerationOptions
    ) -> dict[str, Any]:
        if options.return_tensors:
            return {"generated_token_ids": prompt + token_ids}
        text = self.tokenizer.decode(token_ids, skip_special_tokens=options.skip_special_tokens)
        if options.return_full_text is False or options.return_text is False:
            return {"generated_text": text}
        if isinstance(item, str):
            return {"generated_text": item + text}
        if not _continues(item, options):
            return {"generated_text": [*item, {"role": "assistant", "content": text}]}
        begun = normalise([item[-1]])[-1]["content"]
        return {"generated_text": [*item[:-1], {**item[-1], "content": begun + text}]}


def _continues(chat: Sequence[Mapping[str, Any]], options: TextGenerationOptions) -> bool:
    """Whether the answer goes on with the chat's last message."""
    if options.continue_final_message is not None:
        return options.continue_final_message
    return chat[-1].get("role") == "assistant"


def _shown(chunks: Iterator[CompletionChunk], prompt: list[int], streamer: Any) -> Iterator[CompletionChunk]:
    """Pass the chunks on, and their ids to the streamer."""
    if streamer is None:
        yield from chunks
        return
    try:
        streamer.put(torch.tensor([prompt]))
        for chunk in chunks:
            streamer.put(torch.tensor([chunk.token_id]))
            yield chunk
        streamer.end()
    except BaseException as error:
        if hasattr(streamer, "fail"):
            streamer.fail(error)
        raise
