"""GGUF files, read by us, by transformers and by llama.cpp: same weights, same logits."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_blocks import BLOCKS
from gguf_files import gguf_name, write_config, write_gguf
from llama_cpp_server import LlamaCpp, llama_cpp_process
from tiny_models import tiny_config, tiny_model
from torch import Tensor
from transformers.utils import logging as hf_logging

from smollm3.model.smollm3 import SmolLM3ForCausalLM

IDS = torch.tensor([[5, 9, 11, 40, 7, 3, 22, 8, 17, 31, 2, 19]])


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    hf_logging.disable_progress_bar()
    yield
    hf_logging.enable_progress_bar()


@torch.no_grad()
def logits_of(model: Any, ids: Tensor = IDS) -> Tensor:
    logits: Tensor = model(input_ids=ids).logits
    return logits


def theirs(path: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return model.eval()


def ours(path: Path, **how: Any) -> SmolLM3ForCausalLM:
    return SmolLM3ForCausalLM.from_pretrained(path, dtype=torch.float32, **how)


# transformers


def test_the_trained_files_weights_are_exactly_transformers(small_model: Path, reference_135m: Any) -> None:
    reference, model = reference_135m.state_dict(), ours(small_model).state_dict()
    assert set(model) == set(reference)
    for name, expected in reference.items():
        assert model[name].dtype == torch.float32
        assert torch.equal(model[name], expected), name


def random_model_file(path: Path, kind: str) -> Path:
    """A llama whose matrices are random blocks of one type."""
    config = tiny_config(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8
    )
    rng = np.random.default_rng(1)
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in SmolLM3ForCausalLM(config).state_dict().items()}
    writer = gguf.GGUFWriter(path, "llama")
    write_config(writer, config)
    for name, shape in shapes.items():
        if name == "lm_head.weight":
            continue
        if len(shape) == 1:
            writer.add_tensor(gguf_name(name), rng.uniform(0.01, 0.02, shape).astype(np.float32))
            continue
        block_size, pack = BLOCKS[kind]
        packed, _ = pack(rng, math.prod(shape) // block_size)
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(gguf_name(name), packed.reshape(shape[0], -1), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_quantized_type_gives_transformers_weights_and_logits(kind: str, tmp_path: Path) -> None:
    path = random_model_file(tmp_path / "x.gguf", kind)
    reference, model = theirs(path), ours(path)
    for name, expected in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], expected), name
    torch.testing.assert_close(logits_of(model), logits_of(reference), rtol=1e-4, atol=1e-5)


# The model that went in


@pytest.mark.parametrize(
    ("kind", "error"),
    [("F32", 0.0), ("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2), ("Q4_1", 0.3), ("Q4_0", 0.4)],
)
def test_logits_are_those_of_the_original_within_the_types_error(
    kind: str, error: float, tmp_path: Path
) -> None:
    original = tiny_model(SmolLM3ForCausalLM, hidden_size=64, intermediate_size=96, initializer_range=0.1)
    path = write_gguf(tmp_path / "x.gguf", original.config, original.state_dict(), kind=kind)
    expected, found = logits_of(original), logits_of(ours(path))
    if kind == "F32":
        assert torch.equal(found, expected)
        return
    distance = (found - expected).norm() / expected.norm()
    assert distance <= error
    assert distance > error / 100, "a type that loses nothing is another type"


def test_rows_left_permuted_would_show(tmp_path: Path) -> None:
    original = tiny_model(SmolLM3ForCausalLM)
    path = write_gguf(tmp_path / "x.gguf", original.config, original.state_dict())
    changed = ours(path)
    query = changed.model.layers[0].get_submodule("self_attn.q_proj").get_parameter("weight")
    with torch.no_grad():
        query.copy_(query.view(4, 2, 4, -1).transpose(1, 2).reshape(query.shape))
    assert not torch.allclose(logits_of(changed), logits_of(original), atol=1e-3)


def test_auto_reads_a_file_in_its_own_dtype(tmp_path: Path) -> None:
    original = tiny_model(SmolLM3ForCausalLM, intermediate_size=64)
    wanted = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "Q8_0": torch.bfloat16}
    for kind, dtype in wanted.items():
        path = write_gguf(tmp_path / f"{kind}.gguf", original.config, original.state_dict(), kind=kind)
        assert SmolLM3ForCausalLM.from_pretrained(path, dtype="auto").dtype == dtype
        assert SmolLM3ForCausalLM.from_pretrained(path).dtype == dtype


# llama.cpp


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[LlamaCpp]:
    with llama_cpp_process() as llama:
        yield llama


def with_tokenizer(path: Path, model: SmolLM3ForCausalLM, **how: Any) -> Path:
    """The model in a file that llama.cpp accepts: with as many tokens as its vocabulary has rows."""
    plain = gguf.GGUFWriter.write_header_to_file

    def add_tokens(writer: gguf.GGUFWriter, *args: Any) -> None:
        size = model.config.vocab_size
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([f"t{i}" for i in range(size)])
        writer.add_token_types([gguf.TokenType.NORMAL] * size)
        writer.add_token_merges(["t 1"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        plain(writer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", add_tokens)
        return write_gguf(path, model.config, model.state_dict(), **how)


YARN = {
    "ARCH__rope__scaling__type": "yarn",
    "ARCH__rope__scaling__factor": 4.0,
    "ARCH__rope__scaling__original_context_length": 32,
}
CASES: dict[str, dict[str, Any]] = {
    "smollm3": {},
    "llama": {"architecture": "llama"},
    "yarn": YARN,
    # Its other numbers (beta_fast, beta_slow) llama.cpp does not read from a file of this architecture.
    "yarn with an attention factor": {**YARN, "ARCH__rope__scaling__attn_factor": 0.75},
    "linear": {"ARCH__rope__scaling__type": "linear", "ARCH__rope__scaling__factor": 2.0},
    "untied": {"changes": {"tie_word_embeddings": False}},
}


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_agrees_on_the_next_token(case: str, llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    how = dict(CASES[case])
    shape = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 64, "rope_theta": 1000.0}
    original = tiny_model(
        SmolLM3ForCausalLM, **{**shape, "initializer_range": 0.15, **how.pop("changes", {})}
    )
    path = with_tokenizer(tmp_path / "x.gguf", original, **how)
    ids = [(7 * i * i + 3 * i) % 62 + 2 for i in range(90)]
    expected = llama_cpp.next_logprobs(path, ids)
    found = logits_of(ours(path), torch.tensor([ids]))[0, -1].log_softmax(-1)
    assert len(expected) > 20
    for token_id, logprob in expected.items():
        # llama.cpp keeps keys and values in half precision
        assert found[token_id].item() == pytest.approx(logprob, abs=0.02), token_id
    spread = max(expected.values()) - min(expected.values())
    assert spread > 1, "logits that say nothing would always agree"
