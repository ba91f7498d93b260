"""What several parity tests compare with and none should load twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils import logging as hf_logging


@pytest.fixture(scope="session")
def reference_135m(small_model: Path) -> Any:
    """The small trained model as transformers reads it, in fp32; that takes it many seconds."""
    hf_logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        small_model.parent, gguf_file=small_model.name, dtype=torch.float32
    )
    hf_logging.enable_progress_bar()
    return model.eval()
