"""The small trained model, loaded once for the command line's tests."""

from pathlib import Path

import pytest

from smollm3.cli.loading import Loaded, load
from smollm3.cli.options import LoadOptions
from smollm3.model.config import SmolLM3Config
from smollm3.model.smollm3 import SmolLM3ForCausalLM


@pytest.fixture(scope="session")
def loaded(small_model: Path) -> Loaded:
    """SmolLM2-135M in float32."""
    return load(LoadOptions(str(small_model), dtype="float32", device="cpu"))


@pytest.fixture
def preloaded(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """Make the commands find the model loaded already, whatever they ask for."""
    monkeypatch.setattr("smollm3.cli.loading.load", lambda options: loaded)
    return loaded


@pytest.fixture(scope="session")
def chatterbox(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny untrained model that loads at once and babbles on until its context ends."""
    folder = tmp_path_factory.mktemp("chatterbox")
    config = SmolLM3Config(
        vocab_size=len(loaded.tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=100_000, pad_token_id=None,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    SmolLM3ForCausalLM(config).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder
