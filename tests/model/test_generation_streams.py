"""Answers on their way: stop strings, streamers, the iterator of ids, and threads."""

import threading
from typing import Any

import pytest
import torch
from generation_models import GREEDY, LETTERS, PAD, PROMPT, LetterTokenizer, answer, new_ids, refusal
from torch import Tensor

from smollm3.errors import ParameterError
from smollm3.model.generation_output import GenerateOutput
from smollm3.model.smollm3 import SmolLM3ForCausalLM

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
