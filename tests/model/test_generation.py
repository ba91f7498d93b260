"""generate and stream at their face: what goes in, what comes out, what is refused and with which line."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from generation_models import LETTERS, PAD, LetterTokenizer, new_ids, tiny_model
from torch import Tensor

from smollm3.errors import ContextOverflowError, ParameterError, PromptError
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.generation_output import GenerateOutput
from smollm3.model.smollm3 import SmolLM3ForCausalLM

PROMPT = [5, 9, 30, 9, 12]
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": []}


@pytest.fixture
def model() -> Iterator[SmolLM3ForCausalLM]:
    shared = tiny_model()
    yield shared
    shared._generation_config = None  # other tests share the model


def answer(model: SmolLM3ForCausalLM, inputs: Any = (PROMPT,), **arguments: Any) -> list[list[int]]:
    out = model.generate(list(inputs), **{**GREEDY, "pad_token_id": PAD, **arguments})
    assert isinstance(out, Tensor)
    return new_ids(out, max(map(len, inputs)))


def refusal(model: SmolLM3ForCausalLM, error: type[Exception] = ParameterError, **arguments: Any) -> str:
    with pytest.raises(error) as caught:
        model.generate(**{"inputs": [PROMPT], **GREEDY, **arguments})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Inputs


def test_tensors_and_lists_of_one_or_two_dimensions_are_prompts(model: SmolLM3ForCausalLM) -> None:
    expected = model.generate(torch.tensor([PROMPT]), **GREEDY)
    assert expected.shape == (1, len(PROMPT) + 8)
    assert expected.dtype == torch.long
    assert expected[0, : len(PROMPT)].tolist() == PROMPT
    for inputs in (
        torch.tensor(PROMPT),
        PROMPT,
        [PROMPT],
        (PROMPT,),
        torch.tensor([PROMPT], dtype=torch.int32),
    ):
        assert model.generate(inputs, **GREEDY).tolist() == expected.tolist()
    assert model.generate(input_ids=torch.tensor([PROMPT]), **GREEDY).tolist() == expected.tolist()
    mapping = {"input_ids": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, 5)}
    assert model.generate(**mapping, **GREEDY).tolist() == expected.tolist()


def test_the_ids_are_given_once(model: SmolLM3ForCausalLM) -> None:
    assert "once" in refusal(model, input_ids=[PROMPT])
    assert "once" in refusal(model, inputs=None)


@pytest.mark.parametrize("inputs", [[], [[]], [PROMPT, []], torch.zeros(1, 0, dtype=torch.long)])
def test_empty_prompts_are_refused(model: SmolLM3ForCausalLM, inputs: Any) -> None:
    assert "empty" in refusal(model, PromptError, inputs=inputs)


@pytest.mark.parametrize(
    "inputs",
    [
        "text",
        ["text"],
        [1.5],
        [[1], 2],
        [True],
        [None],
        7,
        torch.zeros(1, 3),
        torch.zeros(1, 1, 3).long(),
        {"a": 1},
    ],
)
def test_what_is_no_ids_is_refused(model: SmolLM3ForCausalLM, inputs: Any) -> None:
    refusal(model, PromptError, inputs=inputs)


def test_ids_outside_of_the_vocabulary_are_refused(model: SmolLM3ForCausalLM) -> None:
    assert "999" in refusal(model, PromptError, inputs=[[5, 999]])
    assert "-1" in refusal(model, PromptError, inputs=torch.tensor([[5, -1]]))


def test_masks_fit_and_leave_something(model: SmolLM3ForCausalLM) -> None:
    assert "attention_mask is [1, 4]" in refusal(model, PromptError, attention_mask=torch.ones(1, 4))
    assert "prompt 0 is empty" in refusal(model, PromptError, attention_mask=torch.zeros(1, 5))


def test_without_a_mask_pads_at_both_ends_are_padding_and_pads_inside_are_ids(
    model: SmolLM3ForCausalLM,
) -> None:
    plain = answer(model)
    inside = [5, 0, 30, 9, 12]
    padded = torch.tensor([[0, 0, *PROMPT], [*PROMPT, 0, 0], [0, *inside, 0]])
    found = new_ids(model.generate(padded, **GREEDY), 7)
    assert found[:2] == plain * 2
    assert found[2] == answer(model, [inside], pad_token_id=PAD)[0]
    as_eos = model.generate(padded, **{**GREEDY, "eos_token_id": 0, "min_new_tokens": 8})
    assert new_ids(as_eos, 7)[0] == answer(model, [[0, 0, *PROMPT]], eos_token_id=0, min_new_tokens=8)[0]


def test_ragged_lists_come_back_padded_on_the_left(model: SmolLM3ForCausalLM) -> None:
    out = model.generate([[4], PROMPT], **{**GREEDY, "pad_token_id": 0})
    assert out[:, :5].tolist() == [[0, 0, 0, 0, 4], PROMPT]
    assert new_ids(out, 5) == answer(model, [[4]]) + answer(model)


# Lengths


def test_the_default_is_256_tokens_or_what_the_context_has_left(model: SmolLM3ForCausalLM) -> None:
    out = model.generate([PROMPT], do_sample=False, eos_token_id=[])
    assert out.shape == (1, 64)
    config = GenerationConfig()
    assert config.num_new_tokens(10, 4096) == 256
    with pytest.raises(ContextOverflowError, match=r"prompt of 64 ids .* context of 64"):
        config.num_new_tokens(64, 64)


def test_overflow_is_an_error_with_both_numbers_before_anything_runs(model: SmolLM3ForCausalLM) -> None:
    line = refusal(model, ContextOverflowError, max_new_tokens=60)
    assert line.startswith("prompt of 5 ids + max_new_tokens=60 = 65 is over the context of 64")
    assert model.generate([PROMPT], **{**GREEDY, "max_new_tokens": 59}).shape == (1, 64)


def test_max_length_counts_the_prompt_and_max_new_tokens_wins(model: SmolLM3ForCausalLM) -> None:
    lengths = {"max_new_tokens": None, "max_length": 9}
    assert model.generate([PROMPT], **{**GREEDY, **lengths}).shape == (1, 9)
    assert model.generate([PROMPT], **{**GREEDY, "max_length": 6}).shape == (1, 13)
    assert "max_length=5 leaves nothing" in refusal(model, max_new_tokens=None, max_length=5)
    ends = answer(model, max_new_tokens=1)[0]
    assert len(answer(model, eos_token_id=ends, min_length=8)[0]) >= 4


# Samples and seeds


def test_samples_of_a_row_lie_together(model: SmolLM3ForCausalLM) -> None:
    arguments = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 3, "seed": [1, 2]}
    out = model.generate([PROMPT, [4] * 5], eos_token_id=[], **arguments)
    assert out[:, :5].tolist() == [PROMPT] * 3 + [[4] * 5] * 3
    assert len({tuple(row) for row in out.tolist()}) > 4
    second = model.generate([[4] * 5], eos_token_id=[], **{**arguments, "seed": 2})
    assert out[3:].tolist() == second.tolist()
    assert "2 values for 1" in refusal(model, seed=[1, 2])


def test_torch_manual_seed_reproduces_an_unseeded_call(model: SmolLM3ForCausalLM) -> None:
    def draw() -> list[list[int]]:
        return answer(model, [PROMPT, PROMPT], do_sample=True, max_new_tokens=20)

    torch.manual_seed(5)
    first, other = draw(), draw()
    torch.manual_seed(5)
    assert draw() == first
    assert first != other
    assert first[0] != first[1], "rows without a seed draw their own"


# Defaults of the checkpoint


def test_the_checkpoints_config_applies_and_arguments_win(model: SmolLM3ForCausalLM) -> None:
    sampled = answer(model, do_sample=True, temperature=3.0, top_k=7, seed=4)
    model.generation_config = GenerationConfig.from_dict(
        {"do_sample": True, "temperature": 3.0, "top_k": 7, "max_new_tokens": 3, "_from_model_config": True}
    )
    arguments = {"pad_token_id": PAD, "eos_token_id": [], "seed": 4}
    assert new_ids(model.generate([PROMPT], **arguments), 5) == [sampled[0][:3]]
    given = GenerationConfig(max_new_tokens=8)
    assert new_ids(model.generate([PROMPT], given, **arguments), 5) == sampled
    assert new_ids(model.generate([PROMPT], given, max_new_tokens=2, **arguments), 5) == [sampled[0][:2]]
    assert answer(model) == answer(model, temperature=1.0)


def test_special_ids_come_from_the_models_config_unless_set(model: SmolLM3ForCausalLM) -> None:
    model._generation_config = None
    assert model.generation_config.eos_token_id == 2
    assert model.generation_config.pad_token_id == 0
    model.generation_config = GenerationConfig(temperature=0.5)
    forced = model.generate([PROMPT], max_new_tokens=4, logit_bias={2: 100.0})
    assert forced[0].tolist() == [*PROMPT, 2]


def test_a_checkpoint_that_asks_for_beams_is_not_decoded_greedily_in_silence(
    model: SmolLM3ForCausalLM,
) -> None:
    model.generation_config = GenerationConfig.from_dict({"num_beams": 4})
    assert "num_beams=4" in refusal(model)
    assert answer(model, num_beams=1)


# Arguments that are refused


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("max_tokens", "max_new_tokens"),
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("num_return_sequence", "num_return_sequences"),
        ("attention_masks", "attention_mask"),
        ("stop_string", "stop_strings"),
    ],
)
def test_an_unknown_argument_names_the_closest_known_one(
    model: SmolLM3ForCausalLM, name: str, close: str
) -> None:
    line = refusal(model, **{name: 3})
    assert f"'{name}'" in line
    assert f"did you mean {close}?" in line


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 4},
        {"penalty_alpha": 0.6},
        {"no_repeat_ngram_size": 2},
        {"guidance_scale": 1.5},
        {"assistant_model": "other"},
        {"output_attentions": True},
        {"past_key_values": ()},
        {"early_stopping": True},
        {"logits_processor": [print]},
    ],
    ids=str,
)
def test_what_is_not_supported_is_one_clear_line(
    model: SmolLM3ForCausalLM, arguments: dict[str, Any]
) -> None:
    assert "is not supported by generate" in refusal(model, **arguments)


def test_neutral_values_of_what_is_not_supported_pass(model: SmolLM3ForCausalLM) -> None:
    neutral = {
        "num_beams": 1,
        "length_penalty": 1.0,
        "early_stopping": False,
        "assistant_model": None,
        "typical_p": 1.0,
    }
    assert answer(model, **neutral) == answer(model)


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": float("inf")},
        {"top_k": True},
        {"num_return_sequences": 0},
        {"num_return_sequences": 10**9},
        {"num_return_sequences": "2"},
        {"max_new_tokens": 0},
        {"max_new_tokens": -5},
        {"max_length": 0, "max_new_tokens": None},
        {"cache_implementation": "quantized"},
        {"use_cache": 1},
        {"use_cache": False, "cache_implementation": "static"},
        {"stop_strings": ["a", ""], "tokenizer": "any"},
        {"stop_strings": "abc"},
        {"seed": 1.5},
        {"seed": "1"},
        {"pad_token_id": -1},
        {"eos_token_id": ["</s>"]},
        {"min_new_tokens": 9},
    ],
    ids=str,
)
def test_wrong_values_are_one_clear_line(model: SmolLM3ForCausalLM, arguments: dict[str, Any]) -> None:
    refusal(model, **arguments)


# Outputs


def test_the_output_object_reads_like_transformers(model: SmolLM3ForCausalLM) -> None:
    forced = {"eos_token_id": 2, "logit_bias": {2: 3.0}, "do_sample": True, "seed": 4}
    out = model.generate(
        [PROMPT, [4, 5]],
        max_new_tokens=30,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        logprobs=2,
        **forced,
    )
    assert isinstance(out, GenerateOutput)
    assert out["sequences"] is out.sequences is out[0]
    assert out.finish_reasons == ("stop", "stop")
    assert out.scores is not None
    assert out.logits is not None
    assert out.logprobs is not None
    assert out.top_logprobs is not None
    lengths = [len(row) for row in out.logprobs]
    assert lengths[0] != lengths[1], "choose a seed whose rows end at different steps"
    assert len(out.scores) == len(out.logits) == max(lengths)
    short = lengths.index(min(lengths))
    ended = out.scores[-1][short]
    assert ended[0] == 0, "an ended row is certain of the pad id"
    assert ended[1:].isneginf().all()
    for row in range(2):
        for step, logprob in enumerate(out.logprobs[row]):
            token_id = int(out.sequences[row, 5 + step])
            expected = out.logits[step][row].log_softmax(-1)
            assert logprob == pytest.approx(float(expected[token_id]), abs=1e-4)
            assert [i for i, _ in out.top_logprobs[row][step]] == expected.topk(2).indices.tolist()
    assert not out.scores[0].is_inference()


def test_a_plain_output_object_has_no_empty_fields(model: SmolLM3ForCausalLM) -> None:
    out = model.generate([PROMPT], return_dict_in_generate=True, **GREEDY)
    assert isinstance(out, GenerateOutput)
    assert out.keys() == ("sequences", "finish_reasons")
    assert out.finish_reasons == ("length",)


def test_training_goes_on_after_generating_and_dropout_is_off_meanwhile() -> None:
    model = tiny_model()
    plain = answer(model)
    model.train()
    dropouts = [layer.self_attn for layer in model.model.layers]
    try:
        for attention in dropouts:
            attention.dropout = 0.9  # type: ignore[union-attr]
        assert answer(model) == plain
        assert model.training
        assert model.model.layers[0].training
    finally:
        for attention in dropouts:
            attention.dropout = 0.0  # type: ignore[union-attr]
        model.eval()


# Stop strings


def test_a_stop_string_ends_its_row_with_its_ids_kept(model: SmolLM3ForCausalLM) -> None:
    tokenizer = LetterTokenizer()
    free = answer(model, [PROMPT, [4, 4]])
    stop = "".join(LETTERS[token_id] for token_id in free[0][2:4])
    out = model.generate(
        [PROMPT, [4, 4]],
        stop_strings=[stop, "zzzzz"],
        tokenizer=tokenizer,
        return_dict_in_generate=True,
        **{**GREEDY, "pad_token_id": PAD},
    )
    assert isinstance(out, GenerateOutput)
    first, second = new_ids(out.sequences, 5)
    end = tokenizer.text(free[0]).index(stop) + 2
    assert first == free[0][:end]
    assert out.finish_reasons is not None
    assert out.finish_reasons[0] == "stop"
    if stop not in tokenizer.text(free[1]):
        assert second == free[1]


def test_a_stop_string_ends_one_sample_and_not_the_others(model: SmolLM3ForCausalLM) -> None:
    arguments = {"do_sample": True, "seed": 8, "num_return_sequences": 6, "max_new_tokens": 20}
    free = answer(model, **arguments)
    letter = LETTERS[free[2][4]]
    stopped = answer(model, stop_strings=letter, tokenizer=LetterTokenizer(), **arguments)
    for whole, cut in zip(free, stopped, strict=True):
        text = LetterTokenizer().text(whole)
        assert cut == whole[: text.index(letter) + 1 if letter in text else None]


# Streams


class Recorder:
    def __init__(self, fails_at: int | None = None) -> None:
        self.values: list[list[Any]] = []
        self.ended = False
        self.error: BaseException | None = None
        self.fails_at = fails_at

    def put(self, value: Tensor) -> None:
        if len(self.values) == self.fails_at:
            raise RuntimeError("the reader is gone")
        self.values.append(value.tolist())

    def end(self) -> None:
        self.ended = True

    def fail(self, error: BaseException) -> None:
        self.error = error


def test_a_streamer_sees_the_prompt_then_each_id_then_the_end(model: SmolLM3ForCausalLM) -> None:
    streamer = Recorder()
    expected = answer(model, streamer=streamer)[0]
    assert streamer.values == [[PROMPT], *([token_id] for token_id in expected)]
    assert streamer.ended
    assert streamer.error is None
    assert "2" in refusal(model, streamer=streamer, inputs=[PROMPT, PROMPT])
    assert "3" in refusal(model, streamer=streamer, num_return_sequences=3)


def test_an_error_reaches_the_streamer_and_the_caller(model: SmolLM3ForCausalLM) -> None:
    streamer = Recorder(fails_at=2)
    with pytest.raises(RuntimeError, match="the reader is gone"):
        model.generate([PROMPT], streamer=streamer, **GREEDY)
    assert isinstance(streamer.error, RuntimeError)
    assert not streamer.ended


def test_stream_checks_at_the_call_and_works_when_pulled(model: SmolLM3ForCausalLM) -> None:
    with pytest.raises(ParameterError, match="did you mean"):
        model.stream([PROMPT], max_tokens=3)
    outputs = model.stream([PROMPT, [4]], **GREEDY)
    first = [next(outputs), next(outputs)]
    assert [output.request_idx for output in first] == [0, 1]
    outputs.close()  # type: ignore[attr-defined]
    assert list(outputs) == []
    tensor = torch.tensor([PROMPT])
    ids = [output.token_id for output in model.stream(tensor, **GREEDY)]
    assert ids == answer(model)[0]
    assert torch.is_inference_mode_enabled() is False


def test_the_consumers_grad_mode_is_its_own_between_pulls(model: SmolLM3ForCausalLM) -> None:
    weight = torch.ones(2, requires_grad=True)
    for _ in model.stream([PROMPT], **GREEDY):
        assert torch.is_grad_enabled()
        (weight * 2).sum().backward()
    assert weight.grad is not None


def test_two_threads_generate_at_once(model: SmolLM3ForCausalLM) -> None:
    expected = [answer(model, [[i, i + 1]], do_sample=True, seed=i)[0] for i in range(3, 7)]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        found[i] = answer(model, [[i, i + 1]], do_sample=True, seed=i)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(3, 7)] == expected


def test_generate_leaves_nothing_behind(model: SmolLM3ForCausalLM) -> None:
    assert model.generation_config
    names = set(vars(model))
    answer(model)
    assert set(vars(model)) == names
