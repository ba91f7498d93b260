"""The page before the real server: a chat with the small trained model, and what needs a key."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_actions import send, watch
from playwright.sync_api import Browser, expect
from serving import Running, running
from tiny_models import write_tokenizer

from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server.app import build_app
from smollm3.server.build import build_service
from smollm3.server.page.files import page_paths
from smollm3.server.settings import access_for
from smollm3.tokenization import SmolLM3Tokenizer

KEY = "sk-page-test"
Loaded = tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer]


@pytest.fixture(scope="module")
def guarded(loaded_135m: Loaded) -> Iterator[Running]:
    """The small trained model behind a key, as `smollm3 serve --ui` serves it on this machine."""
    service = build_service(*loaded_135m, "smollm2-135m")
    app = build_app(service, access=access_for("127.0.0.1", api_keys=(KEY,)), ui=True)
    with running(app, service) as server:
        yield server


def test_the_small_model_answers_through_the_page(guarded: Running, browser: Browser) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    problems = watch(page, f"{guarded.url}/")
    page.goto(f"{guarded.url}/")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_text("smollm2-135m")
    expect(page.get_by_role("button", name="Think first")).to_be_hidden()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_label("Longest answer", exact=True).fill("24")
    page.get_by_role("button", name="Done").click()
    send(page, "What is the capital of France?")
    answer = page.get_by_role("article", name="Answer")
    expect(answer.locator(".stats")).to_contain_text("tokens", timeout=60_000)
    expect(answer.locator("> .prose")).to_contain_text("Paris")
    send(page, "And of Germany?")
    expect(page.get_by_role("article", name="Answer").nth(1).locator(".stats")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer", exact=True).fill("999999999")
    page.get_by_role("button", name="Done").click()
    send(page, "Too long")
    expect(page.get_by_role("alert").last).to_contain_text("max_completion_tokens")
    context.close()
    assert problems == []


def test_the_page_needs_no_key_and_everything_else_does(guarded: Running) -> None:
    with guarded.client() as client:
        for path in sorted(page_paths()):
            assert client.get(path).status_code == 200, path
        assert client.get("/health").status_code == 200
        for path in (
            "/v1/models",
            "/metrics",
            "/page/nothing.js",
            "/page/../v1/models",
            "/page",
            "/page/app.js/",
        ):
            assert client.get(path).status_code == 401, path
        assert client.post("/v1/chat/completions", json={}).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_without_ui_there_is_no_page(loaded_135m: Loaded) -> None:
    service = build_service(*loaded_135m, "smollm2-135m")
    with running(build_app(service), service) as server, server.client() as client:
        assert [client.get(path).status_code for path in sorted(page_paths())] == [404] * len(page_paths())
    service = build_service(*loaded_135m, "smollm2-135m")
    app = build_app(service, access=access_for("127.0.0.1", api_keys=(KEY,)))
    with running(app, service) as server, server.client() as client:
        assert {client.get(path).status_code for path in page_paths()} == {401}


@pytest.mark.parametrize(
    ("template", "thinks"), [("{{ messages[0].content }}", False), ("{{ enable_thinking }}", True)]
)
def test_the_models_entry_says_whether_its_template_can_think(
    tiny: SmolLM3ForCausalLM, tmp_path: Path, template: str, thinks: bool
) -> None:
    folder = write_tokenizer(tmp_path)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    service = build_service(tiny, SmolLM3Tokenizer.from_path(folder), "tiny")
    with running(build_app(service), service) as server, server.client() as client:
        assert client.get("/v1/models/tiny").json()["thinking"] is thinks
