"""`generate` and `stream` of the causal model: ids and arguments in, ids out, over the engine's one loop.

Resolves checkpoint defaults, generation_config and arguments (the later wins), strips padding, chooses the
runner, matches stop strings. Decides nothing about sampling and keeps no state between calls.
Shapes: B prompts, n samples of each, W width of the padded prompts, T = W + the longest answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from smollm3.engine.engine import MAX_OFFLINE_STEP_TOKENS, MAX_SAMPLES, Engine, Request
from smollm3.engine.runner import Runner
from smollm3.engine.sample import TokenOutput
from smollm3.errors import ParameterError
from smollm3.model.generation_config import UNSUPPORTED, GenerationConfig, refuse
from smollm3.model.generation_inputs import Prompts, read_prompts
from smollm3.model.generation_output import Gathered, GenerateOutput
from smollm3.model.recomputing_runner import RecomputingRunner
from smollm3.model.torch_runner import TorchRunner, context_size
from smollm3.text.detokenizer import Detokenizer
from smollm3.text.stops import StopMatcher

if TYPE_CHECKING:
    from smollm3.model.native_runner import NativeRunner
    from smollm3.model.prompt_cache import PromptCache
    from smollm3.model.smollm3 import SmolLM3ForCausalLM


ENGINES = ("auto", "native", "torch")


class Streamer(Protocol):
    """Is handed the prompt [1, W], then each new id [1]; `fail(error)`, if it has one, at an error."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """A checked call: nothing of it is left to fail but running out of memory."""

    model: "SmolLM3ForCausalLM"
    config: GenerationConfig
    prompts: Prompts
    engine: Engine
    tokenizer: Any

    def run(self) -> Iterator[TokenOutput]:
        """Yield ids as they come; closing the iterator cancels and frees. Dropout is off meanwhile."""
        stops = self.config.stop_list
        texts: dict[tuple[int, int], StopText] = {}
        was_training = self.model.training
        outputs = self.engine.stream()
        try:
            if was_training:
                self.model.eval()
            for output in outputs:
                if stops:
                    key = (output.request_idx, output.sample_idx)
                    text = texts.setdefault(key, StopText(self.tokenizer, stops))
                    if text.ends_with(output.token_id) and output.finish_reason != "stop":
                        self.engine.abort(*key)
                        output = replace(output, finish_reason="stop")
                yield output
        finally:
            outputs.close()  # type: ignore[attr-defined]
            if was_training:
                self.model.train()


class StopText:
    """One sample's text so far, as far as its stop strings need it."""

    def __init__(self, tokenizer: Any, stops: list[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
        self._matcher = StopMatcher(stops)

    def ends_with(self, token_id: int) -> bool:
        """Take in an id and say whether a stop string is complete."""
        self._matcher.push(self._detokenizer.push(token_id))
        return self._matcher.matched is not None


class GenerationMixin:
    """Gives a causal model `generate`, `stream` and `generation_config`."""

    # What computes: "native" (the C++ CPU engine), "torch", or "auto": native where it can run the model.
    engine: str = "auto"
    # Pasts of prompts that every call's native engine begins with.
    prompt_caches: Sequence["PromptCache"] = ()
    _generation_config: GenerationConfig | None = None

    @property
    def generation_config(self) -> GenerationConfig:
        """The checkpoint's defaults: its generation_config.json, else the special ids of its config."""
        if self._generation_config is None:
            self._generation_config = _ids_of_config(self)
        return self._generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self._generation_config = config

    def generate(
        self,
        inputs: Any = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        streamer: Streamer | None = None,
        tokenizer: Any = None,
        **arguments: Any,
    ) -> Tensor | GenerateOutput:
        """Go on from prompts until an eos id, a stop string or the last token asked for.

        Args:
            inputs, input_ids: two names for the prompts' ids: tensor [B, W] or [W], list, or list of lists.
            attention_mask: [B, W], nonzero where an id is real. Without one, pad ids at either end of a row
                are padding, unless the pad id is also an eos id.
            generation_config: wins over the checkpoint's, field by field.
            streamer: is given the ids as they come; for one prompt and one sample.
            tokenizer: what turns ids into text for `stop_strings`.
            **arguments: fields of GenerationConfig, which win over everything; None leaves a field as it is.

        Returns:
            [B*n, T]: the input ids, then the answers (with what ended them), padded on the right with the pad
            id; with return_dict_in_generate a GenerateOutput.

        Raises:
            ContextOverflowError: a prompt and max_new_tokens together are over the context.
            ParameterError, PromptError: an unknown, unsupported or wrong argument; an empty prompt.
        """
        plan = _plan(self, inputs, input_ids, attention_mask, generation_config, tokenizer, arguments)
        config, prompts = plan.config, plan.prompts
        gathered = Gathered(prompts.input_ids, config.num_return_sequences or 1, config.padding_id)
        if streamer is not None and len(gathered.rows) > 1:
            raise ParameterError(
                f"a streamer follows one row and this call makes {len(gathered.rows)}: use model.stream"
            )
        try:
            if streamer is not None:
                streamer.put(prompts.input_ids.cpu())
            for output in plan.run():
                gathered.add(output)
                if streamer is not None:
                    streamer.put(torch.tensor([output.token_id]))
            if streamer is not None:
                streamer.end()
        except BaseException as error:
            if streamer is not None and hasattr(streamer, "fail"):
                streamer.fail(error)
            raise
        return gathered.output() if config.return_dict_in_generate else gathered.sequences()

    def stream(
        self,
        inputs: Any = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        tokenizer: Any = None,
        runner: Runner | None = None,
        **arguments: Any,
    ) -> Iterator[TokenOutput]:
        """Return an iterator over new ids; arguments and errors are as for `generate`.

        The call checks everything; pulling the iterator does the work, closing it cancels. Each output
        names its prompt (`request_idx`) and its sample; the last of a sample has a `finish_reason`.
        `runner`: one of `new_runner`, which still has the pasts of earlier calls.
        """
        plan = _plan(self, inputs, input_ids, attention_mask, generation_config, tokenizer, arguments, runner)
        return plan.run()

    def new_runner(self, max_cache_tokens: int | None = None) -> Runner:
        """Return a runner for several calls of `stream`, which takes in only what no earlier call has.

        It goes by the weights as they are now: after a change of weights, make a new one.
        `max_cache_tokens`: tokens of KV cache, those kept for reuse included; None: one full context.
        """
        room = context_size(self) if max_cache_tokens is None else max_cache_tokens  # type: ignore[arg-type]
        if _is_native(self):  # type: ignore[arg-type]
            runner = _with_pasts(self, room, self.prompt_caches)
            runner.settle()
            return runner
        return TorchRunner(self, max_kept_tokens=room)  # type: ignore[arg-type]


def _plan(
    model: Any,
    inputs: Any,
    input_ids: Any,
    attention_mask: Any,
    generation_config: GenerationConfig | None,
    tokenizer: Any,
    arguments: dict[str, Any],
    runner: Runner | None = None,
) -> Plan:
    """Check a call and queue its requests; nothing runs yet."""
    config = _ids_of_config(model).merged(model.generation_config)
    config = config.merged(generation_config, **arguments)
    for name, value in config.extra.items():
        if name in UNSUPPORTED:  # a checkpoint that wants beams must not get greedy answers in silence
            refuse(name, value)
    if (inputs is None) == (input_ids is None):
        raise ParameterError("give the prompt's ids once: as the first argument or as input_ids")
    if config.stop_list and tokenizer is None:
        raise ParameterError("stop_strings are matched in text: pass tokenizer= as well")
    device = model.model.embed_tokens.weight.device
    prompts = read_prompts(inputs if input_ids is None else input_ids, attention_mask, config, device)
    max_new_tokens = config.num_new_tokens(prompts.width, context_size(model))
    seeds = _seeds(config.seed, len(prompts.rows))
    requests = [
        Request(
            row, config.sampling_params(max_new_tokens, prompts.width, seed), config.num_return_sequences or 1
        )
        for row, seed in zip(prompts.rows, seeds, strict=True)
    ]
    runner = _runner(model, config, requests) if runner is None else _checked(runner, config)
    engine = Engine(runner, max_step_tokens=MAX_OFFLINE_STEP_TOKENS)
    for request in requests:
        engine.add(request)
    return Plan(model, config, prompts, engine, tokenizer)


def _runner(model: "SmolLM3ForCausalLM", config: GenerationConfig, requests: list[Request]) -> Runner:
    static = config.cache_implementation == "static"
    if config.use_cache is False:
        if static:
            raise ParameterError("cache_implementation='static' needs a cache: drop it, or use_cache=False")
        return RecomputingRunner(model)
    num_slots = min(sum(request.num_samples for request in requests), MAX_SAMPLES)
    if (native := _native_runner(model, requests)) is not None:
        return native
    if not static:
        return TorchRunner(model, num_slots=num_slots)
    room = max(len(request.prompt_ids) + request.params.max_new_tokens for request in requests)
    return TorchRunner(model, num_slots=num_slots, room=room)


def _checked(runner: Runner, config: GenerationConfig) -> Runner:
    if config.use_cache is False or config.cache_implementation == "static":
        raise ParameterError("a runner brings its own cache: leave out use_cache and cache_implementation")
    return runner


def _is_native(model: "SmolLM3ForCausalLM") -> bool:
    """Whether the native CPU engine is to run the model, or torch."""
    from smollm3.model.native_runner import refusal

    if model.engine not in ENGINES:
        raise ParameterError(f"engine={model.engine!r}: give one of {', '.join(ENGINES)}")
    if model.engine == "auto":
        # An attention implementation that was chosen is the one that runs.
        return model.attn_implementation == "sdpa" and refusal(model) is None
    return model.engine == "native"


def _native_runner(model: "SmolLM3ForCausalLM", requests: list[Request]) -> Runner | None:
    """Return the native CPU engine with room for the requests, or None where torch is to run them."""
    if not _is_native(model):
        return None
    from smollm3.model.native_runner import NativeRunner

    room = sum(
        request.num_samples
        * (len(request.prompt_ids) + request.params.max_new_tokens + NativeRunner.BLOCK_SIZE)
        for request in requests
    )
    # What begins otherwise than every prompt would only be copied.
    starts = {request.prompt_ids[0] for request in requests}
    return _with_pasts(model, room, [cache for cache in model.prompt_caches if cache.token_ids[0] in starts])


def _with_pasts(model: Any, room: int, caches: Sequence["PromptCache"]) -> "NativeRunner":
    """Return the native engine with `room` tokens of cache beside those of `caches`, which are loaded."""
    from smollm3.model.native_runner import NativeRunner

    room += sum(len(cache.token_ids) + NativeRunner.BLOCK_SIZE for cache in caches)
    runner = NativeRunner(model, max_cache_tokens=room)
    for cache in caches:
        cache.load_into(runner)
    return runner


def _seeds(seed: Any, num: int) -> list[int | None]:
    if seed is None or isinstance(seed, int):
        return [seed] * num
    if len(seed) != num:
        raise ParameterError(
            f"seed has {len(seed)} values for {num} prompts: give one number, or one per prompt"
        )
    return list(seed)


def _ids_of_config(model: Any) -> GenerationConfig:
    config = model.config
    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
