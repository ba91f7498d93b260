"""/v1/embeddings through the openai client, against the model's own hidden states."""

from collections.abc import Iterator

import openai
import pytest
import torch
from api_clients import client_of
from serving import Running

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.tokenization import SmolLM3Tokenizer

TEXTS = ["The capital of France is Paris.", "She lived in Amsterdam."]


@pytest.fixture(scope="module")
def client(tiny_server: Running) -> Iterator[openai.OpenAI]:
    with client_of(tiny_server) as made:
        yield made


@pytest.mark.parametrize("pooling", [None, "mean", "last"])
def test_vectors_are_pooled_hidden_states_of_length_one(
    client: openai.OpenAI, tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer, pooling: str | None
) -> None:
    extra = {} if pooling is None else {"pooling": pooling}
    # The client asks for base64 and decodes it; with "float" it passes numbers through.
    reply = client.embeddings.create(model="tiny", input=TEXTS, extra_body=extra)
    numbers = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float", extra_body=extra)
    num_tokens = 0
    for idx, text in enumerate(TEXTS):
        ids = tiny_tokenizer.encode(text)
        num_tokens += len(ids)
        with torch.no_grad():
            hidden = tiny.model(torch.tensor([ids])).last_hidden_state[0]
        pooled = hidden[-1] if pooling == "last" else hidden.mean(0)
        expected = pooled / pooled.norm()
        for made in (reply, numbers):
            assert made.data[idx].index == idx
            torch.testing.assert_close(torch.tensor(made.data[idx].embedding), expected, atol=2e-5, rtol=1e-4)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == num_tokens


def test_ids_are_as_good_as_their_text_and_dimensions_must_be_the_models(
    client: openai.OpenAI, tiny_tokenizer: SmolLM3Tokenizer
) -> None:
    by_text = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=32).data[0].embedding
    by_ids = client.embeddings.create(model="tiny", input=tiny_tokenizer.encode(TEXTS[0])).data[0].embedding
    assert by_ids == by_text
    assert len(by_text) == 32
    with pytest.raises(openai.BadRequestError, match="32 numbers") as caught:
        client.embeddings.create(model="tiny", input="x", dimensions=8)
    assert caught.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError, match="512") as caught:
        client.embeddings.create(model="tiny", input=["ok", "word " * 900])
    assert (caught.value.param, caught.value.code) == ("input[1]", "context_length_exceeded")
