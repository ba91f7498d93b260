"""Clients that leave, wait in vain or are refused, seen through the openai client."""

import time
from collections.abc import Iterator

import openai
import pytest
from api_clients import client_of
from serving import Running, running

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server.app import build_app
from smollm3.server.build import ServiceOptions, build_service
from smollm3.tokenization import SmolLM3Tokenizer


@pytest.fixture(scope="module")
def server(loaded_135m: tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer]) -> Iterator[Running]:
    service = build_service(*loaded_135m, "smollm2-135m", ServiceOptions(max_requests=1))
    with running(build_app(service), service) as made:
        yield made


def wait_until_idle(server: Running) -> None:
    deadline = time.monotonic() + 20
    while server.service.num_active:
        assert time.monotonic() < deadline, "the request was not given up"
        time.sleep(0.01)


def test_a_closed_stream_frees_its_place_and_a_full_server_says_429(server: Running) -> None:
    with client_of(server) as client:
        stream = client.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": "Count to a million."}], stream=True
        )
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="smollm2-135m", prompt="x")
        assert caught.value.response.headers["retry-after"] == "1"
        stream.close()
        wait_until_idle(server)
        assert client.completions.create(model="smollm2-135m", prompt="x").choices[0].text


def test_a_client_that_does_not_wait_for_a_whole_answer_frees_its_place(server: Running) -> None:
    with client_of(server) as client, pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": "Count to a million."}],
            logit_bias={str(i): -100 for i in server.service.defaults.eos_ids},
        )
    wait_until_idle(server)
