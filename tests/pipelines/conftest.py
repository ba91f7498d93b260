"""The tokenizer of the pipelines' tests."""

from pathlib import Path

import pytest
from tiny_models import write_tokenizer

from smollm3.tokenization import SmolLM3Tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> SmolLM3Tokenizer:
    return SmolLM3Tokenizer.from_path(tokenizer_folder)
