"""The path from prompt ids to streamed text: pieces that join to the answer, stops, batches, cancelling."""

from itertools import groupby, islice
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, write_tokenizer

from smollm3.completion import CompletionChunk, stream
from smollm3.errors import ContextOverflowError, ParameterError, PromptError
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.tokenization import SmolLM3Tokenizer

PROMPT = "Where did she live?"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SmolLM3Tokenizer:
    return SmolLM3Tokenizer.from_path(write_tokenizer(tmp_path_factory.mktemp("completion")))


@pytest.fixture
def model() -> SmolLM3ForCausalLM:
    model = tiny_model(SmolLM3ForCausalLM)
    model.generation_config = GenerationConfig(eos_token_id=[], pad_token_id=0)
    return model


def new_ids(model: SmolLM3ForCausalLM, prompt: list[int], **arguments: Any) -> list[int]:
    """What `generate` gives after one prompt."""
    return model.generate([prompt], **arguments)[0, len(prompt) :].tolist()  # type: ignore[index, no-any-return]


def test_pieces_join_to_what_generate_gives(model: SmolLM3ForCausalLM, tokenizer: SmolLM3Tokenizer) -> None:
    prompt = tokenizer.encode(PROMPT)
    chunks = list(stream(model, tokenizer, prompt, max_new_tokens=40))
    expected = new_ids(model, prompt, max_new_tokens=40)
    assert [chunk.token_id for chunk in chunks] == expected
    assert "".join(chunk.text for chunk in chunks) == tokenizer.decode(expected, skip_special_tokens=True)
    assert [chunk.finish_reason for chunk in chunks] == [None] * 39 + ["length"]
    assert [chunk.num_generated for chunk in chunks] == list(range(1, 41))
    assert {chunk.num_prompt for chunk in chunks} == {len(prompt)}


def test_time_is_told(model: SmolLM3ForCausalLM, tokenizer: SmolLM3Tokenizer) -> None:
    chunks = list(stream(model, tokenizer, [5, 6], max_new_tokens=5))
    seconds = [chunk.seconds for chunk in chunks]
    assert 0 < seconds[0] == chunks[-1].first_token_seconds
    assert seconds == sorted(seconds)
    assert chunks[0].tokens_per_second is None
    speed = 4 / (seconds[-1] - seconds[0])
    assert chunks[-1].tokens_per_second == pytest.approx(speed)


@pytest.mark.parametrize("seed", range(6))
def test_a_stop_string_ends_the_answer_and_is_not_shown(
    model: SmolLM3ForCausalLM, tokenizer: SmolLM3Tokenizer, seed: int
) -> None:
    prompt = tokenizer.encode(PROMPT)
    arguments: dict[str, Any] = {"max_new_tokens": 40, "do_sample": True, "seed": seed}
    whole = tokenizer.decode(new_ids(model, prompt, **arguments))
    stop = whole[11:13]
    chunks = list(stream(model, tokenizer, prompt, stop_strings=["never to be seen", stop], **arguments))
    shown = "".join(chunk.text for chunk in chunks)
    assert shown == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].stop_string == stop
    assert len(chunks) < 40
    assert all(chunk.finish_reason is None and chunk.stop_string is None for chunk in chunks[:-1])


def test_the_models_own_stop_strings_count(model: SmolLM3ForCausalLM, tokenizer: SmolLM3Tokenizer) -> None:
    prompt = tokenizer.encode(PROMPT)
    whole = tokenizer.decode(new_ids(model, prompt, max_new_tokens=20))
    model.generation_config = model.generation_config.merged(stop_strings=[whole[8:10]])
    assert (
        "".join(c.text for c in stream(model, tokenizer, prompt, max_new_tokens=20))
        == whole.split(whole[8:10])[0]
    )


def test_an_eos_id_ends_the_answer_and_is_not_shown(
    model: SmolLM3ForCausalLM, tokenizer: SmolLM3Tokenizer
) -> None:
    prompt = tokenizer.encode(PROMPT)
    end = tokenizer.eos_token_id
    assert end is not None
    config = GenerationConfig(max_new_tokens=9, eos_token_id=end, logit_bias={end: 1000.0}, min_new_tokens=3)
    chunks = list(stream(model, tokenizer, prompt, config))
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert chunks[-1].token_id == end
    assert chunks[-1].stop_string is None
    assert "<|im_end|>" not in "".join(chunk.text for chunk in chunks)
    told = stream(model, tokenizer, prompt, config, skip_special_tokens=False)
    assert "".join(chunk.text for chunk in told).endswith("<|im_end|>")


def test_a_batch_streams_what_each_prompt_streams_alone(
    model: SmolLM3ForCausalLM, tokenizer: SmolLM3Tokenizer
) -> None:
    prompts = [tokenizer.encode(text) for text in ("A", PROMPT, "the old harbour near Amsterdam")]
    arguments: dict[str, Any] = {
        "max_new_tokens": 12,
        "do_sample": True,
        "seed": 7,
        "num_return_sequences": 2,
    }

    def texts(chunks: Any) -> dict[tuple[int, int], str]:
        key = lambda chunk: (chunk.prompt_idx, chunk.sample_idx)  # noqa: E731
        grouped = groupby(sorted(chunks, key=key), key=key)
        return {place: "".join(chunk.text for chunk in group) for place, group in grouped}

    together = texts(stream(model, tokenizer, prompts, **arguments))
    for place, prompt in enumerate(prompts):
        alone = texts(stream(model, tokenizer, prompt, **arguments))
        assert {(place, sample): text for (_, sample), text in alone.items()}.items() <= together.items()
    assert len(together) == 6


def test_logprobs_come_with_the_chunks(model: SmolLM3ForCausalLM, tokenizer: SmolLM3Tokenizer) -> None:
    (chunk,) = stream(model, tokenizer, [5, 6, 7], max_new_tokens=1, logprobs=3)
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1)
    assert chunk.logprob == pytest.approx(float(expected[chunk.token_id]), abs=1e-5)
    assert chunk.top_logprobs is not None
    assert [token_id for token_id, _ in chunk.top_logprobs] == expected.topk(3).indices.tolist()


def test_nothing_runs_before_it_is_asked_for_and_leaving_cancels(
    model: SmolLM3ForCausalLM, tokenizer: SmolLM3Tokenizer
) -> None:
    passes: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    model.train()
    chunks = stream(model, tokenizer, [5, 6], max_new_tokens=30)
    assert passes == []
    assert len(list(islice(chunks, 3))) == 3
    assert len(passes) == 3
    chunks.close()  # type: ignore[attr-defined]
    assert list(chunks) == []
    assert len(passes) == 3
    assert model.training, "the model is left as it was"


@pytest.mark.parametrize(
    ("prompt", "arguments", "error", "message"),
    [
        ([], {}, PromptError, "the prompt is empty"),
        ([[5], []], {}, PromptError, "prompt 1 is empty"),
        ([5] * 500, {"max_new_tokens": 100}, ContextOverflowError, "500.*100.*512"),
        ([5] * 512, {}, ContextOverflowError, "512"),
        ([5], {"temprature": 1}, ParameterError, "temperature"),
        ([5], {"temperature": float("nan")}, ParameterError, "temperature"),
        ([5], {"stop_strings": [""]}, ParameterError, "stop.string"),
        ([5, 400], {}, PromptError, "400"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_run_says_so_at_once(
    model: SmolLM3ForCausalLM,
    tokenizer: SmolLM3Tokenizer,
    prompt: Any,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        stream(model, tokenizer, prompt, **arguments)
    assert "\n" not in str(caught.value)


def test_a_chunk_is_immutable() -> None:
    chunk = CompletionChunk("a", 1, 1, 1, 0.1, 0.1)
    with pytest.raises(AttributeError):
        chunk.text = "b"  # type: ignore[misc]
