"""API keys through the openai client: a wrong one is refused, responses belong to the key that made them."""

import httpx
import openai
import pytest
from serving import running

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server.app import build_app
from smollm3.server.build import build_service
from smollm3.server.settings import Access
from smollm3.tokenization import SmolLM3Tokenizer


def test_keys_are_asked_for_and_keep_responses_apart(
    tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer
) -> None:
    service = build_service(tiny, tiny_tokenizer, "tiny")
    app = build_app(service, access=Access(api_keys=("first", "second")))
    with running(app, service) as server, httpx.Client(trust_env=False) as http:
        first, second, wrong = (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, http_client=http)
            for key in ("first", "second", "wrong")
        )
        with pytest.raises(openai.AuthenticationError) as caught:
            wrong.responses.create(model="tiny", input="x", max_output_tokens=2)
        assert caught.value.code == "invalid_api_key"
        made = first.responses.create(
            model="tiny", input="x", max_output_tokens=2, extra_headers={"X-Request-Id": "chosen"}
        )
        assert "chosen" not in made.id
        assert first.responses.retrieve(made.id).output_text == made.output_text
        for ask in (
            lambda: second.responses.retrieve(made.id),
            lambda: second.responses.delete(made.id),
            lambda: second.responses.create(model="tiny", input="y", previous_response_id=made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        first.responses.delete(made.id)
