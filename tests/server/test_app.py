"""The routes that need no model, over a real socket."""

import statistics
import time

from raw_clients import connected, read_reply, request
from serving import Running


def test_health_and_models(tiny_server: Running) -> None:
    with tiny_server.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        listed = client.get("/v1/models").json()
        assert listed["object"] == "list"
        (model,) = listed["data"]
        assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 512)
        assert client.get("/v1/models/tiny").json() == model


def test_what_is_not_there_is_told_in_openais_words(tiny_server: Running) -> None:
    with tiny_server.client() as client:
        missing = client.get("/v1/models/gpt-5")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"
        assert client.get("/nowhere").json()["error"]["message"] == "no such path: GET /nowhere"
        wrong = client.post("/health")
        assert wrong.status_code == 405
        assert wrong.json()["error"]["type"] == "invalid_request_error"


def test_replies_on_one_connection_do_not_wait_for_acknowledgements(tiny_server: Running) -> None:
    seconds = []
    with connected(tiny_server.port) as connection:
        for _ in range(25):
            began = time.perf_counter()
            connection.sendall(request("GET", "/health"))
            read_reply(connection)
            seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) < 0.02
