"""Generation of tiny models against transformers: greedy ids, processed scores, sampled distributions."""

import random
from typing import Any

import pytest
import torch
from model_oracle import ROPE, build_pair, random_batch, random_config
from torch import Tensor
from transformers.generation import logits_process as hf

STEPS = 12
NUM_CASES = 16
NEVER = 10**6  # an eos id that no model gives


def small_config(rng: random.Random, **fixed: Any) -> Any:
    rope_type = rng.choice([name for name in ROPE if name != "dynamic"])
    rope = {"rope_type": rope_type, "rope_theta": 1e4, **ROPE[rope_type]}
    return random_config(
        rng, **{"max_position_embeddings": 64, "rope_parameters": rope, "eos_token_id": None, **fixed}
    )


def their_greedy(reference: Any, ids: Tensor, mask: Tensor, **arguments: Any) -> Any:
    return reference.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=STEPS,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        use_cache=reference.config.sliding_window != 1,  # its cache of a window of 1 loses the id itself
        **arguments,
    )


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_greedy_ids_of_a_left_padded_batch_are_transformers(seed: int) -> None:
    rng = random.Random(seed)
    config = small_config(rng)
    mine, reference = build_pair(config, seed=seed)
    batch = random_batch(rng, config, "left")
    theirs = their_greedy(reference, batch.ids, batch.real.long())
    for arguments in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        ours = mine.generate(
            batch.ids,
            attention_mask=batch.real,
            max_new_tokens=STEPS,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **arguments,
        )
        assert ours.sequences.tolist() == theirs.sequences.tolist()
        for name in ("scores", "logits"):
            torch.testing.assert_close(
                torch.stack(ours[name]), torch.stack(theirs[name]), atol=1e-4, rtol=1e-4
            )
    for row in range(len(batch.ids)):
        alone = mine.generate(batch.ids[row][batch.real[row]], max_new_tokens=STEPS)
        assert alone[0, -STEPS:].tolist() == ours.sequences[row, -STEPS:].tolist()


@pytest.mark.parametrize("rope_type", sorted(ROPE))
def test_a_single_row_follows_transformers_beyond_the_trained_length(rope_type: str) -> None:
    rope = {"rope_type": rope_type, "rope_theta": 1e4, **ROPE[rope_type]}
    config = random_config(
        random.Random(3), rope_parameters=rope, max_position_embeddings=20, eos_token_id=None
    )
    mine, reference = build_pair(config)
    ids = torch.randint(4, config.vocab_size, (1, 5))
    length = 20 if rope_type != "dynamic" else 30
    arguments: dict[str, Any] = {"max_length": length, "pad_token_id": 0}
    theirs = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **arguments)
    assert mine.generate(ids, **arguments).tolist() == theirs.tolist()


def test_dynamic_rope_rows_of_a_batch_do_not_stretch_each_other() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    config = random_config(
        random.Random(5), rope_parameters=rope, max_position_embeddings=16, eos_token_id=None
    )
    mine, _ = build_pair(config)
    rows = [list(range(4, 30)), [5, 6], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]]
    together = mine.generate(rows, max_new_tokens=STEPS)
    for row, ids in enumerate(rows):
        assert (
            mine.generate(ids, max_new_tokens=STEPS)[0, -STEPS:].tolist() == together[row, -STEPS:].tolist()
        )


@pytest.mark.parametrize("num_eos", [1, 2])
def test_rows_end_at_an_eos_id_and_are_padded_on_the_right(num_eos: int) -> None:
    rng = random.Random(11)
    config = small_config(rng, pad_token_id=0, vocab_size=40)
    mine, reference = build_pair(config)
    batch = random_batch(rng, config, "left", B=6)
    free = mine.generate(batch.ids, attention_mask=batch.real, max_new_tokens=STEPS)
    eos = [int(free[0, -STEPS + 3]), int(free[1, -STEPS + 5])][:num_eos]
    theirs = their_greedy(reference, batch.ids, batch.real.long(), eos_token_id=eos)
    ours = mine.generate(
        batch.ids, attention_mask=batch.real, max_new_tokens=STEPS, eos_token_id=eos, pad_token_id=0
    )
    assert ours.tolist() == theirs.sequences.tolist()
    assert (ours[0, -STEPS + 4 :] == 0).all()


def test_a_mask_is_inferred_from_padding_as_transformers_does() -> None:
    rng = random.Random(12)
    config = small_config(rng, pad_token_id=3)
    mine, reference = build_pair(config)
    ids = torch.randint(4, config.vocab_size, (2, 9))
    ids[1, :4] = 3
    arguments: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False}
    assert mine.generate(ids, **arguments).tolist() == reference.generate(ids, **arguments).tolist()


# Processed scores

PROCESSORS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.1},
    "repetition": {"repetition_penalty": 1.3},
    "bad words": {"bad_words_ids": [[5], [7, 8], [9, 10, 11], [6, 6]]},
    "bias": {"logit_bias": {4: 3.0, 9: -2.5}},
    "min new tokens": {"min_new_tokens": 7, "eos_token_id": [4, 5]},
    "page": {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
    "all": {
        "temperature": 1.5,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "bad_words_ids": [[5], [7, 8]],
        "logit_bias": {4: 3.0, 9: -2.5},
        "min_new_tokens": 4,
        "eos_token_id": [12, 5],
    },
}


def their_processors(num_prompt: int, options: dict[str, Any], *, do_sample: bool) -> hf.LogitsProcessorList:
    """What transformers' generate builds for these options, in its order."""
    eos = options.get("eos_token_id", [NEVER])
    found = hf.LogitsProcessorList()
    if "logit_bias" in options:
        found.append(
            hf.SequenceBiasLogitsProcessor([[[i], bias] for i, bias in options["logit_bias"].items()])
        )
    if "repetition_penalty" in options:
        found.append(hf.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if "bad_words_ids" in options:
        found.append(hf.NoBadWordsLogitsProcessor(options["bad_words_ids"], eos))
    if "min_new_tokens" in options:
        found.append(hf.MinNewTokensLengthLogitsProcessor(num_prompt, options["min_new_tokens"], eos))
    if do_sample and "temperature" in options:
        found.append(hf.TemperatureLogitsWarper(options["temperature"]))
    if do_sample and "top_k" in options:
        found.append(hf.TopKLogitsWarper(options["top_k"]))
    if do_sample and "top_p" in options:
        found.append(hf.TopPLogitsWarper(options["top_p"]))
    if do_sample and "min_p" in options:
        found.append(hf.MinPLogitsWarper(options["min_p"]))
    return found


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("name", PROCESSORS)
def test_processed_scores_are_those_of_transformers_processors(name: str, do_sample: bool) -> None:
    options = PROCESSORS[name]
    rng = random.Random(7)
    config = small_config(rng, vocab_size=60)
    mine, _ = build_pair(config)
    prompt = [7, 8, 9, 10, 6, 7]
    out = mine.generate(
        prompt,
        max_new_tokens=24,
        do_sample=do_sample,
        seed=1,
        num_return_sequences=3,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **options,
    )
    processors = their_processors(len(prompt), options, do_sample=do_sample)
    for row, reason in enumerate(out.finish_reasons):
        num = 24 if reason == "length" else _num_steps(out, row)
        for step in range(num):
            ids = out.sequences[row : row + 1, : len(prompt) + step]
            theirs = processors(ids, out.logits[step][row : row + 1].clone())[0]
            torch.testing.assert_close(out.scores[step][row], theirs, atol=1e-5, rtol=1e-5)


def _num_steps(out: Any, row: int) -> int:
    """Steps before a row ended: an ended row is certain of the pad id."""
    certain = [step for step, scores in enumerate(out.logits) if scores[row].isneginf().any()]
    return certain[0] if certain else len(out.logits)


def test_sampled_ids_follow_the_distribution_of_transformers_processors() -> None:
    config = small_config(random.Random(9), vocab_size=40)
    mine, reference = build_pair(config)
    prompt = [5, 9, 12]
    options = {"temperature": 1.2, "top_k": 12, "top_p": 0.9, "min_p": 0.01}
    ids = mine.generate(
        [prompt] * 8,
        max_new_tokens=1,
        do_sample=True,
        seed=list(range(8)),
        num_return_sequences=1000,
        **options,
    )[:, -1]
    with torch.no_grad():
        logits = reference(torch.tensor([prompt])).logits[:, -1]
    expected = their_processors(3, options, do_sample=True)(torch.tensor([prompt]), logits)[0].softmax(
        0
    ) * len(ids)
    counts = torch.bincount(ids, minlength=40)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = float(((counts - expected) ** 2 / expected)[possible].sum())
    degrees = int(possible.sum()) - 1
    assert 1 <= degrees <= 11
    assert chi_square < 31.3  # 11 degrees of freedom: one in a thousand lies above
