"""What the page keeps in the browser: conversations over a reload, a bound that is told, export, looks."""

import json
from pathlib import Path

from fake_chat_server import Call, FakeChatServer, Finish, Think
from page_actions import send, watch
from playwright.sync_api import BrowserContext, Page, expect


def ask(page: Page, text: str) -> None:
    send(page, text)
    expect(page.get_by_role("article", name="Answer").last.locator(".stats")).to_be_visible()


def test_conversations_are_kept_over_a_reload_and_can_be_deleted(page: Page, server: FakeChatServer) -> None:
    server.answer(Think("hm"), "First answer", Call(0, "{}", "look"), Finish("tool_calls"))
    ask(page, "First chat")
    page.get_by_role("button", name="New chat").click()
    ask(page, "Second chat")
    page.reload()
    expect(page.get_by_role("article", name="You")).to_have_text("Second chat")
    page.get_by_role("button", name="First chat", exact=True).click()
    expect(page.get_by_role("article", name="Answer")).to_contain_text("First answer")
    expect(page.get_by_role("region", name="Tool call")).to_contain_text("look")
    page.get_by_role("button", name="Delete “First chat”").click()
    expect(page.get_by_role("button", name="First chat", exact=True)).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("article", name="Answer")).to_contain_text("First answer")
    page.get_by_role("button", name="Delete “First chat”").click()
    page.reload()
    expect(page.get_by_role("button", name="Second chat", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="First chat", exact=True)).to_have_count(0)


def test_a_reload_in_the_middle_keeps_the_part(page: Page, server: FakeChatServer) -> None:
    server.answer("Half an answer", Finish("stop", done=False))
    send(page, "Go")
    expect(page.get_by_role("article", name="Answer")).to_contain_text("Half an answer")
    page.reload()
    expect(page.get_by_role("article", name="Answer")).to_contain_text("Half an answer")


FILL = """([count, size]) => {
  for (let index = 0; index < count; index += 1) {
    const id = `filler${index}`;
    const message = { id: "m", parent: "", role: "user", content: "x".repeat(size), created: 1 };
    const tree = { messages: { m: message }, selected: { "": "m" } };
    const chat = { id, title: `Old ${index}`, created: 1, updated: 1, ...tree };
    localStorage.setItem(`smollm3.chat.${id}`, JSON.stringify(chat));
  }
}"""


def test_a_full_browser_says_so_and_works_on(page: Page, server: FakeChatServer) -> None:
    page.evaluate(FILL, [4, 999_700])
    page.reload()
    expect(page.locator("#storage")).to_contain_text("100 %")
    ask(page, "One more")
    expect(page.locator("#banner")).to_contain_text("no room for more chats")
    page.get_by_role("button", name="Delete “Old 1”").click()
    expect(page.locator("#banner")).to_be_hidden()
    ask(page, "And now")
    page.reload()
    expect(page.get_by_role("article", name="You")).to_have_text(["One more", "And now"])


def test_damaged_chats_do_no_harm(page: Page, server: FakeChatServer) -> None:
    page.evaluate("""() => {
      const chat = { id: "c", title: "Loop", created: 1, updated: 1, selected: { "": "a", a: "a" },
        messages: { a: { id: "a", parent: "a", role: "user", content: "again" } } };
      localStorage.setItem("smollm3.chat.c", JSON.stringify(chat));
      localStorage.setItem("smollm3.chat.x", "{broken");
      localStorage.setItem("smollm3.chat.y", '{"id": "y", "title": "no messages"}');
      localStorage.setItem("smollm3.settings", "[1]");
      localStorage.setItem("smollm3.open", "7");
    }""")
    page.reload()
    expect(page.locator("#banner")).to_contain_text("could not be read")
    page.get_by_role("button", name="Loop", exact=True).click()
    expect(page.get_by_role("article", name="You")).to_have_text("again")


def test_two_tabs_see_each_others_chats(page: Page, context: BrowserContext, server: FakeChatServer) -> None:
    other = context.new_page()
    problems = watch(other, server.url)
    other.goto(server.url)
    ask(page, "From the first tab")
    other.get_by_role("button", name="From the first tab", exact=True).click()
    ask(other, "From the second")
    expect(page.get_by_role("article", name="You")).to_have_text(["From the first tab", "From the second"])
    assert problems == []


def test_a_chat_is_exported(page: Page, server: FakeChatServer) -> None:
    server.answer(Think("hm"), "Hello **you**")
    ask(page, "Hi / there?")
    contents = {}
    for kind in ("Markdown", "JSON"):
        page.get_by_role("button", name="This chat").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Export as {kind}").click()
        contents[kind] = Path(download.value.path()).read_text(encoding="utf-8")
        assert download.value.suggested_filename.startswith("Hi-there.")
    assert "## You\n\nHi / there?" in contents["Markdown"]
    assert "Hello **you**" in contents["Markdown"]
    exported = json.loads(contents["JSON"])
    assert exported["messages"] == [
        {"role": "user", "content": "Hi / there?"},
        {"role": "assistant", "content": "Hello **you**"},
    ]
    assert any(message.get("reasoning") == "hm" for message in exported["tree"]["messages"].values())


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_dark_follows_the_system_and_the_switch_is_kept(page: Page) -> None:
    light = page.evaluate(BACKGROUND)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(BACKGROUND)
    assert light != dark
    page.get_by_role("button", name="Light mode").click()
    assert page.evaluate(BACKGROUND) == light
    page.reload()
    assert page.evaluate(BACKGROUND) == light
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Dark mode").click()
    assert page.evaluate(BACKGROUND) == dark


CONTRAST = """() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const wrong = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const seen = node.checkVisibility() && !node.closest(":disabled, .skip, noscript");
    const text = walker.currentNode.data.trim().slice(0, 30);
    if (!text || !seen) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) wrong.push(`${node.className || node.localName} ${ratio.toFixed(2)}: ${text}`);
  }
  return wrong;
}"""


def test_text_is_easy_to_see_and_controls_have_names(page: Page, server: FakeChatServer) -> None:
    code = '```python\ndef f(x):  # why\n    return "a" + 1\n```\n\n'
    code += "> quoted [link](https://x.org)\n\n| a |\n|--|\n| `b` |"
    server.answer(Think("hm"), code, Call(0, '{"a": 1}', "look"), Finish("tool_calls"))
    ask(page, "Show everything")
    page.locator("summary").click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert page.evaluate(CONTRAST) == [], scheme
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, textarea, input, a")]
      .filter((node) => node.checkVisibility() && !node.ariaLabel && !node.textContent.trim())
      .filter((node) => !node.labels?.length).map((node) => node.outerHTML)""")
    assert nameless == []


def test_a_phone_shows_everything_without_scrolling_sideways(page: Page, server: FakeChatServer) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    wide = "| " + " | ".join(["wide column"] * 12) + " |\n|" + "--|" * 12 + "\n"
    server.answer("x" * 300 + f"\n\n```\n{'y' * 300}\n```\n\n{wide}")
    ask(page, "z" * 300)
    assert page.evaluate(
        "document.querySelector('#scroller').scrollWidth <= document.querySelector('#scroller').clientWidth"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.get_by_role("button", name="New chat")).to_be_hidden()
    page.get_by_role("button", name="Chats", exact=True).click()
    expect(page.get_by_role("button", name="New chat")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="New chat")).to_be_hidden()
    expect(page.get_by_role("button", name="Chats", exact=True)).to_be_focused()
