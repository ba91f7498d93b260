"""The openai client as a black box, at a real server; and a tiny model that thinks and calls tools."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
from serving import Running
from tiny_models import tiny_model
from token_corpus import write_folder

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server.build import build_service
from smollm3.server.service import Service
from smollm3.tokenization import SmolLM3Tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 5},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}


@contextmanager
def client_of(server: Running) -> Iterator[openai.OpenAI]:
    with httpx.Client(trust_env=False, timeout=60) as http:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http)


def thinking_service(folder: Path, chat_template: str, **options: Any) -> Service:
    """A service over random weights whose tokenizer has SmolLM3's tags and template."""
    write_folder(folder)
    (folder / "chat_template.jinja").write_text(chat_template)
    tokenizer = SmolLM3Tokenizer.from_path(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert isinstance(end, int)
    model = tiny_model(
        SmolLM3ForCausalLM, vocab_size=len(tokenizer), eos_token_id=end, max_position_embeddings=4096
    )
    return build_service(model, tokenizer, "org/tiny-think", **options)
