"""Shared inputs of the tests: the small trained model and the deployed chat template."""

import os
import signal
from pathlib import Path

import pytest
from absent import absent

# What runs in the background of a script ignores Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported: with a worker per core, threads of their own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def small_model() -> Path:
    """SmolLM2-135M-Instruct (GGUF, trained weights); downloaded once into the cache."""
    from smollm3.checkpoint.hub import resolve

    return Path(resolve("smollm2-135m"))


@pytest.fixture(scope="session")
def deployed_chat_template() -> str:
    """SmolLM3's deployed chat template: belongs to its checkpoint, not to this repository."""
    path = Path(
        os.environ.get("SMOLLM3_CHAT_TEMPLATE", ROOT.parent / "shared" / "SmolLM3-3B.chat_template.jinja")
    )
    if not path.is_file():
        # It is not ours to pass on: who has no copy tests our own templates, and CI must have one.
        absent(f"{path} is missing: set SMOLLM3_CHAT_TEMPLATE to SmolLM3-3B's chat_template.jinja")
    return path.read_text(encoding="utf-8")


# What takes seconds to set up is set up in one worker of `pytest -n 2 --dist loadgroup`.
SHARED_FIXTURES = {"reference_135m"}
SHARED_MODULES = {"test_tokenizer_llama_cpp", "test_examples", "test_chat_terminal", "test_replicas"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        shared = SHARED_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if shared or item.path.stem in SHARED_MODULES:
            item.add_marker(pytest.mark.xdist_group(min(shared, default=item.path.stem)))
