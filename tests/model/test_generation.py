"""generate at its face: lengths, samples, defaults of the checkpoint, and what comes out."""

import pytest
import torch
from generation_models import GREEDY, PAD, PROMPT, answer, new_ids, refusal, tiny_model

from smollm3.errors import ContextOverflowError
from smollm3.model.generation_config import GenerationConfig
from smollm3.model.generation_output import GenerateOutput
from smollm3.model.smollm3 import SmolLM3ForCausalLM

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
