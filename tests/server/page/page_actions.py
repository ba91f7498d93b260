"""What tests of the chat page do again and again: watch what a page must not do, and send a message."""

from playwright.sync_api import ConsoleMessage, Page


def watch(page: Page, url: str) -> list[str]:
    """Collect what a page must not do: ask another host, log an error, throw, break its policy."""
    problems: list[str] = []

    def logged(message: ConsoleMessage) -> None:
        # Chromium logs every failed request by itself; tests of failures mean to have them.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            problems.append(message.text)

    def asked(address: str) -> None:
        if not address.startswith((url, f"blob:{url}", "data:")):
            problems.append(f"asked for {address}")

    page.on("console", logged)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked(request.url))
    return problems


def send(page: Page, text: str) -> None:
    """Write a message and send it."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
