"""What the server's tests share: services over a tiny random model and over the small trained one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Running, running
from tiny_models import tiny_model, write_tokenizer

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server.app import build_app
from smollm3.server.build import build_service
from smollm3.server.service import Service
from smollm3.tokenization import SmolLM3Tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SmolLM3Tokenizer:
    return SmolLM3Tokenizer.from_path(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def tiny() -> SmolLM3ForCausalLM:
    return tiny_model(SmolLM3ForCausalLM)


@pytest.fixture
def tiny_service(tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer) -> Service:
    """A service over the tiny model that nobody has started: `async with tiny_service: ...`."""
    return build_service(tiny, tiny_tokenizer, "tiny")


@pytest.fixture(scope="module")
def tiny_server(tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer) -> Iterator[Running]:
    """The real application over the tiny model, at a real socket."""
    service = build_service(tiny, tiny_tokenizer, "tiny")
    with running(build_app(service), service) as server:
        yield server


@pytest.fixture(scope="session")
def loaded_135m(small_model: Path) -> tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer]:
    return SmolLM3ForCausalLM.from_pretrained(small_model), SmolLM3Tokenizer.from_path(small_model)


@pytest.fixture(scope="module")
def small_server(loaded_135m: tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer]) -> Iterator[Running]:
    """The real application over the small trained model, at a real socket."""
    service = build_service(*loaded_135m, "smollm2-135m")
    with running(build_app(service), service) as server:
        yield server
