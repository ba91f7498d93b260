"""Who is let in: keys on every route, Host and Origin on loopback, CORS only where it was asked for."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Running, running

from smollm3.errors import ParameterError
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server.app import build_app, routes
from smollm3.server.build import build_service
from smollm3.server.guard import Guard
from smollm3.server.page.files import page_paths
from smollm3.server.service import Service, Work
from smollm3.server.settings import Access, Limits, access_for
from smollm3.tokenization import SmolLM3Tokenizer

KEYS = tuple(f"sk-{idx:040d}" for idx in range(50))
COMPLETION = {"model": "tiny", "prompt": "The", "max_tokens": 2}


@pytest.fixture(scope="module")
def server(tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer) -> Iterator[Running]:
    """A server as `smollm3 serve --ui --api-key ... --cache-per-key` makes it on loopback."""
    access = access_for("127.0.0.1", api_keys=KEYS, cache_per_key=True, cors_origins=("https://app.example",))
    service = build_service(tiny, tiny_tokenizer, "tiny")
    with running(build_app(service, access=access, ui=True), service) as server:
        yield server


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("route", routes(), ids=lambda route: route.path)
@pytest.mark.parametrize("headers", [{}, bearer("sk-wrong"), bearer("-"), {"Authorization": KEYS[0]}])
def test_case_49_every_route_but_health_needs_a_key(
    client: httpx.Client, route: Any, headers: dict[str, str]
) -> None:
    path = route.path.replace("{model:path}", "tiny").replace("{response_id}", "resp_1")
    for method in route.methods:
        reply = client.request(method, path, headers=headers)
        if route.path == "/health":
            assert reply.status_code == 200
        else:
            assert reply.status_code == 401
            assert reply.headers["WWW-Authenticate"] == "Bearer"
            if method != "HEAD":
                assert reply.json()["error"]["code"] == "invalid_api_key"


def test_the_table_is_all_there_is(server: Running, client: httpx.Client) -> None:
    """No twin of a route is open: what is not in the table needs a key before it is said not to be there."""
    for path in ("/docs", "/openapi.json", "/reset", "/load_model", "/v1", "/chat/completions", "/health/",
                 "/health%0a", "/metrics%0a", "/v1/models%0a", "/v1/models/tiny%0a", "/Health",
                 "/%2e%2e/health"):  # fmt: skip
        assert client.get(path).status_code == 401
        assert client.get(path, headers=bearer(KEYS[0])).status_code == 404


@pytest.mark.parametrize("key", [KEYS[0], KEYS[25], KEYS[-1]])
def test_each_key_lets_in(client: httpx.Client, key: str) -> None:
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    assert client.post("/v1/completions", json=COMPLETION, headers=bearer(key)).status_code == 200


def test_the_pages_files_need_no_key_and_nothing_else_of_them_does(client: httpx.Client) -> None:
    for path in page_paths():
        assert client.get(path).status_code == 200
    assert client.get("/page/nothing.js").status_code == 401


def test_case_36_keys_take_equally_long_wherever_they_differ(tiny_service: Service) -> None:
    guard = Guard(Access(api_keys=KEYS), Limits())

    def seconds(key: str) -> float:
        headers = {b"authorization": b"Bearer " + key.encode()}
        began = time.perf_counter()
        for _ in range(20):
            try:
                guard._check_key("/v1/models", headers)
            except Exception:
                continue
        return time.perf_counter() - began

    first, last, none = KEYS[0], KEYS[-1], "sk-x"
    times: dict[str, list[float]] = {first: [], last: [], none: []}
    for _ in range(60):
        for key, measured in times.items():
            measured.append(seconds(key))
    of_first, of_last = statistics.median(times[first]), statistics.median(times[last])
    assert of_first / of_last == pytest.approx(1, abs=0.5)


def test_case_36_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard(Access(api_keys=KEYS), Limits())
    compared: list[bytes] = []

    def count(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return given == known

    monkeypatch.setattr("smollm3.server.guard.hmac.compare_digest", count)
    for key in (KEYS[0], KEYS[-1]):
        compared.clear()
        guard._check_key("/v1/models", {b"authorization": b"Bearer " + key.encode()})
        assert len(compared) == len(KEYS)


def test_case_42_keys_can_have_caches_of_their_own(
    server: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    salts: list[str] = []
    answer = server.service.answer

    def spy(work: Work, request_id: str) -> Any:
        salts.append(work.salt)
        return answer(work, request_id)

    monkeypatch.setattr(server.service, "answer", spy)
    for key in (KEYS[0], KEYS[1], KEYS[0]):
        assert client.post("/v1/completions", json=COMPLETION, headers=bearer(key)).status_code == 200
    assert salts[0] == salts[2] != salts[1]
    assert all(salt and KEYS[0] not in salt for salt in salts)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("localhost", 200), ("LOCALHOST:8000", 200), ("[::1]:80", 200),
        ("evil.example", 403), ("evil.example:8000", 403), ("127.0.0.1.evil.example", 403),
        ("127.0.0.1@evil.example", 403), ("localhost.", 403), ("2130706433", 403), ("[::2]", 403),
    ],
)  # fmt: skip
def test_case_45_on_loopback_other_host_names_are_refused(
    client: httpx.Client, host: str, status: int
) -> None:
    """DNS rebinding: a page whose name was made to point at this machine still sends its own name."""
    assert client.get("/health", headers={"Host": host}).status_code == status


def test_pages_of_other_origins_are_refused_on_loopback(server: Running, client: httpx.Client) -> None:
    own = f"http://127.0.0.1:{server.port}"
    for origin, status in (
        (own, 200),
        ("https://app.example", 200),
        ("https://evil.example", 403),
        ("http://127.0.0.1:1", 403),
        ("null", 403),
        ("", 403),
    ):
        reply = client.get("/v1/models", headers={"Origin": origin, **bearer(KEYS[0])})
        assert reply.status_code == status, origin


def test_cors_is_for_the_origins_that_were_named(client: httpx.Client) -> None:
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    allowed = client.options("/v1/chat/completions", headers=ask)
    assert allowed.status_code == 204
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://app.example"
    reply = client.get("/v1/models", headers={"Origin": "https://app.example", **bearer(KEYS[0])})
    assert reply.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "origin" in reply.headers["Vary"].lower()
    for headers in (allowed.headers, reply.headers):
        assert "Access-Control-Allow-Credentials" not in headers
    refused = client.options("/v1/chat/completions", headers={**ask, "Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_cors_is_off_by_default_and_a_star_never_takes_credentials() -> None:
    ask = {b"origin": b"https://a.example", b"host": b"h"}
    scope = {"method": "OPTIONS", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    preflight = {**ask, b"access-control-request-method": b"POST"}
    closed = Guard(Access(), Limits())
    assert closed.cors_headers(ask) == []
    assert closed.preflight(scope, preflight) is None
    star = Guard(Access(cors_origins=("*",)), Limits())
    assert star.cors_headers(ask) == [(b"access-control-allow-origin", b"*")]
    names = [name for name, _ in star.preflight(scope, preflight) or []]
    assert b"access-control-allow-origin" in names
    assert b"access-control-allow-credentials" not in names


def test_on_a_network_all_hosts_are_let_in_unless_some_are_named() -> None:
    assert access_for("0.0.0.0").hosts == ()
    assert access_for("0.0.0.0", allowed_hosts=("Api.example",)).hosts == ("api.example",)
    assert "localhost" in access_for("::1").hosts
    assert access_for("localhost").check_origin


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"api_keys": ("",)}, "API key"),
        ({"api_keys": ("a b",)}, "API key"),
        ({"api_keys": ("ключ",)}, "API key"),
        ({"cache_per_key": True}, "--cache-per-key"),
        ({"cors_origins": ("example.org",)}, "--cors-origin"),
        ({"cors_origins": ("https://example.org/path",)}, "--cors-origin"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        Access(**fields)


def test_keys_are_not_shown() -> None:
    assert KEYS[0] not in repr(Access(api_keys=KEYS))


@pytest.mark.parametrize("given", ["abc-1.2_3:x", "A" * 64])
def test_a_request_id_comes_back(client: httpx.Client, given: str) -> None:
    assert client.get("/health", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a;b", '"', "a\tb", "é".encode("latin-1")])
def test_an_odd_request_id_is_replaced(client: httpx.Client, given: str | bytes) -> None:
    named = client.get(
        "/health", headers=[(b"X-Request-Id", given if isinstance(given, bytes) else given.encode())]
    )
    assert named.headers["X-Request-Id"].startswith("req-")
