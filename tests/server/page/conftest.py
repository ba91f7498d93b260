"""One Chromium, one profile and one scripted server for all tests of the chat page; none leaves a trace."""

import shutil
from collections.abc import Iterator

import pytest
from absent import absent
from fake_chat_server import FakeChatServer
from page_actions import watch
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT = 5_000  # ms


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "page" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("chromium"))


# Ends with each file: Playwright's loop would be in the way of other tests that run asyncio in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        absent("no Chromium on this machine: install it (on Debian: apt install chromium)")
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running_server() -> Iterator[FakeChatServer]:
    server = FakeChatServer()
    yield server
    server.stop()


@pytest.fixture
def server(running_server: FakeChatServer) -> FakeChatServer:
    """The scripted server, as if it had just started."""
    running_server.scripts.clear()
    running_server.requests.clear()
    running_server.model = {"id": "smollm3-3b", "object": "model", "thinking": True}
    running_server.key = None
    running_server.left.clear()
    return running_server


@pytest.fixture(scope="module")
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """One profile for all tests, since a new one takes longer than most tests do."""
    profile = browser.new_context(viewport={"width": 1100, "height": 760}, reduced_motion="reduce")
    profile.set_default_timeout(TIMEOUT)
    yield profile
    profile.close()


@pytest.fixture
def context(profile: BrowserContext, server: FakeChatServer) -> Iterator[BrowserContext]:
    """The profile with nothing kept in it, and no page open."""
    page = profile.new_page()
    clear = {"origin": server.url.rstrip("/"), "storageTypes": "local_storage"}
    profile.new_cdp_session(page).send("Storage.clearDataForOrigin", clear)
    page.close()
    yield profile
    for page in profile.pages:
        page.close()


@pytest.fixture
def page(context: BrowserContext, server: FakeChatServer) -> Iterator[Page]:
    """The page, open; at the end nothing may have gone to another host and no error may have been logged."""
    page = context.new_page()
    problems = watch(page, server.url)
    page.goto(server.url)
    expect(page.locator("#state")).not_to_have_attribute("data-state", "connecting")
    yield page
    assert problems == []
