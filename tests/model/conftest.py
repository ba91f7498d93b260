"""What the tests of models share."""

from collections.abc import Iterator

import pytest
from generation_models import tiny_model

from smollm3.model.smollm3 import SmolLM3ForCausalLM


@pytest.fixture
def model() -> Iterator[SmolLM3ForCausalLM]:
    """The tiny model that generates, without a generation config of its own."""
    shared = tiny_model()
    yield shared
    shared._generation_config = None  # other tests share the model
