"""Talking to a scripted server through the page, as a reader does: what is sent, and what is shown of it."""

import re
import threading

from fake_chat_server import Call, Fail, FakeChatServer, Finish, Pause, Raw, Think
from page_actions import send
from playwright.sync_api import BrowserContext, Locator, Page, expect

DISTANCE = """() => {
  const scroller = document.querySelector("#scroller");
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
}"""


def answers(page: Page) -> Locator:
    return page.get_by_role("article", name="Answer")


def test_a_question_is_streamed_and_measured(page: Page, server: FakeChatServer) -> None:
    gate = threading.Event()
    server.answer("The answer ", gate, "is **42**.")
    send(page, "What is the answer?")
    expect(answers(page)).to_contain_text("The answer")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(answers(page)).to_have_attribute("aria-busy", "true")
    gate.set()
    expect(answers(page).locator("strong")).to_have_text("42")
    expect(answers(page)).to_have_attribute("aria-busy", "false")
    expect(answers(page).locator(".stats")).to_have_text(
        re.compile(r"^12 tokens · .*first after \d+\.\d+ s$")
    )
    expect(answers(page).locator(".stats")).to_have_attribute(
        "title", "20 tokens read, 16 of them known already"
    )
    assert server.requests == [
        {
            "model": "smollm3-3b",
            "messages": [{"role": "user", "content": "What is the answer?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "enable_thinking": True,
        }
    ]


def test_the_whole_conversation_is_sent_but_not_the_thinking(page: Page, server: FakeChatServer) -> None:
    server.answer(Think("secret"), "One.")
    send(page, "First")
    expect(answers(page)).to_contain_text("One.")
    send(page, "Second")
    expect(answers(page).nth(1)).to_contain_text("Hello!")
    assert [(m["role"], m["content"]) for m in server.requests[1]["messages"]] == [
        ("user", "First"),
        ("assistant", "One."),
        ("user", "Second"),
    ]


def test_thinking_is_folded_and_streams_inside(page: Page, server: FakeChatServer) -> None:
    first, second = threading.Event(), threading.Event()
    server.answer(Think("Let me *see*."), first, Think(" More."), second, "Done.")
    send(page, "Think!")
    thinking = answers(page).locator("details")
    expect(thinking).to_contain_text("Thinking for")
    expect(thinking.get_by_text("Let me")).to_be_hidden()
    thinking.locator("summary").click()
    expect(thinking.locator("em")).to_have_text("see")
    first.set()
    expect(thinking).to_contain_text("Let me see. More.")
    second.set()
    expect(thinking.locator("summary")).to_have_text(re.compile(r"^Thought for \d+\.\d+ s$"))
    expect(answers(page).locator("> .prose")).to_have_text("Done.")


def test_stop_keeps_what_is_there_and_leaves_the_server(page: Page, server: FakeChatServer) -> None:
    server.answer("Once upon a time", threading.Event())
    send(page, "A story")
    expect(answers(page)).to_contain_text("Once upon")
    page.keyboard.press("Escape")
    expect(answers(page).locator(".stats")).to_contain_text("stopped")
    expect(answers(page)).to_contain_text("Once upon a time")
    assert server.left.wait(5)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_an_answer_again_is_a_version_beside_the_first(page: Page, server: FakeChatServer) -> None:
    server.answer("Version one")
    server.answer("Version two")
    send(page, "Write")
    expect(answers(page)).to_contain_text("Version one")
    answers(page).get_by_role("button", name="Answer again").click()
    expect(answers(page)).to_contain_text("Version two")
    expect(answers(page)).to_contain_text("2 of 2")
    answers(page).get_by_role("button", name="Older version").click()
    expect(answers(page)).to_contain_text("Version one")
    assert server.requests[0]["messages"] == server.requests[1]["messages"]


def test_an_edited_message_branches_off(page: Page, server: FakeChatServer) -> None:
    for text in ("About cats", "More on cats", "About dogs"):
        server.answer(text)
    send(page, "Cats?")
    expect(answers(page)).to_contain_text("About cats")
    send(page, "More")
    expect(answers(page)).to_have_count(2)
    first = page.get_by_role("article", name="You").first
    first.hover()
    first.get_by_role("button", name="Edit message").click()
    page.get_by_label("New wording").fill("Dogs?")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(1)
    expect(answers(page)).to_contain_text("About dogs")
    assert server.requests[2]["messages"] == [{"role": "user", "content": "Dogs?"}]
    page.get_by_role("button", name="Older version").first.click()
    expect(answers(page)).to_have_count(2)
    expect(answers(page).nth(1)).to_contain_text("More on cats")


def test_tool_calls_are_cards_that_take_a_result(page: Page, server: FakeChatServer) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Put in an example").click()
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#tools")).to_have_text("1 tool")
    gate = threading.Event()
    server.answer(
        Call(0, '{"city": ', "get_weather"),
        gate,
        Call(0, '"Lisbon"}'),
        Call(1, '{"city":"Oslo"}', "get_weather"),
        Finish("tool_calls"),
    )
    server.answer("Sun and rain.")
    send(page, "Weather?")
    cards = page.get_by_role("region", name="Tool call")
    expect(cards.first).to_contain_text('{"city":')
    expect(cards.first).to_contain_text("writing arguments")
    gate.set()
    expect(cards.first.locator("figure code")).to_have_text('{\n  "city": "Lisbon"\n}\n')
    for field, text in zip(
        page.get_by_label("Result of get_weather").all(), ("sun", '{"sky":"rain"}'), strict=True
    ):
        field.fill(text)
    page.get_by_role("button", name="Send the results").click()
    expect(answers(page).nth(1)).to_contain_text("Sun and rain.")
    expect(cards.nth(1)).to_contain_text('"sky": "rain"')
    assert server.requests[0]["tools"][0]["function"]["name"] == "get_weather"
    _, call, first, second = server.requests[1]["messages"]
    assert call["content"] is None
    assert [c["function"]["arguments"] for c in call["tool_calls"]] == [
        '{"city": "Lisbon"}',
        '{"city":"Oslo"}',
    ]
    assert first == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "sun"}
    assert second == {
        "role": "tool",
        "tool_call_id": call["tool_calls"][1]["id"],
        "content": '{"sky":"rain"}',
    }


def test_an_error_is_readable_and_can_be_retried(page: Page, server: FakeChatServer) -> None:
    server.answer(Fail(429, "Too many requests are waiting.", {"Retry-After": "3"}))
    server.answer("Now it works.")
    send(page, "Hello")
    alert = answers(page).get_by_role("alert")
    expect(alert).to_contain_text("Too many requests are waiting.")
    expect(alert).to_contain_text("about 3 s")
    alert.get_by_role("button", name="Try again").click()
    expect(answers(page)).to_have_count(1)
    expect(answers(page)).to_contain_text("Now it works.")
    assert server.requests[0] == server.requests[1]


def test_errors_of_every_kind_end_in_a_sentence(page: Page, server: FakeChatServer) -> None:
    wrong = [
        (Fail(500, "", body="<h1>proxy error</h1>"), "status 500"),
        (Fail(413, "Body too large"), "Start a new one"),
        (Raw(b'data: {"error": {"message": "The engine is out of memory"}}\n\n'), "out of memory"),
        (Raw(b"data: {not json\n\n"), "not JSON"),
        (Finish(done=False), "ended before the answer was complete"),
    ]
    for step, expected in wrong:
        server.answer(*([step] if isinstance(step, Fail) else ["Part", step]))
        send(page, "Go")
        expect(answers(page).last.get_by_role("alert")).to_contain_text(expected)


def test_the_limit_on_tokens_is_told(page: Page, server: FakeChatServer) -> None:
    server.answer("Cut", Finish("length"))
    send(page, "Long")
    expect(answers(page)).to_contain_text("reached the limit on tokens")


def test_a_server_that_goes_and_comes_back(page: Page, server: FakeChatServer) -> None:
    server.answer("Half of", threading.Event())
    send(page, "One")
    expect(answers(page)).to_contain_text("Half of")
    server.stop()
    expect(answers(page).get_by_role("alert")).to_contain_text("The connection broke")
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    expect(page.locator("#state")).to_have_attribute("data-state", "offline")
    server.restart()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    server.answer("All of it")
    answers(page).get_by_role("button", name="Try again").click()
    expect(answers(page)).to_contain_text("All of it")


def test_a_key_is_asked_for_and_used(context: BrowserContext, server: FakeChatServer) -> None:
    server.key = "right"
    page = context.new_page()
    page.goto(server.url)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This server asks for a key")
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("does not take this key")
    page.get_by_label("API key").fill("right")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    send(page, "Hello")
    expect(answers(page)).to_contain_text("Hello!")
    page.reload()
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    assert (
        page.evaluate("Object.entries(localStorage).filter(([, text]) => text.includes('right')).length") == 0
    )


def test_a_key_that_runs_out_is_asked_for_again(page: Page, server: FakeChatServer) -> None:
    server.key = "new"
    send(page, "Hello")
    page.get_by_label("API key").fill("new")
    page.get_by_role("button", name="Use this key").click()
    expect(answers(page)).to_contain_text("Hello!")


def test_settings_become_fields_of_the_request(page: Page, server: FakeChatServer) -> None:
    page.get_by_role("button", name="Settings").click()
    typed = {
        "System prompt": "Be brief.",
        "Temperature": "0.5",
        "Top p": "0.9",
        "Longest answer": "99",
        "Seed": "7",
    }
    for label, text in {**typed, "Thinking budget": "50"}.items():
        page.get_by_label(label, exact=True).fill(text)
    page.get_by_role("button", name="Done").click()
    page.reload()
    send(page, "Hi")
    expect(answers(page)).to_contain_text("Hello!")
    request = server.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    sent = {
        name: request[name]
        for name in ("temperature", "top_p", "max_completion_tokens", "seed", "thinking_budget")
    }
    assert sent == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 99,
        "seed": 7,
        "thinking_budget": 50,
    }
    page.get_by_role("button", name="Think first").click()
    send(page, "Hi again")
    expect(answers(page)).to_have_count(2)
    assert server.requests[1]["enable_thinking"] is False
    assert "thinking_budget" not in server.requests[1]


def test_wrong_settings_are_marked_and_not_sent(page: Page, server: FakeChatServer) -> None:
    page.get_by_role("button", name="Settings").click()
    for label, text in {"Temperature": "3", "Seed": "1.5", "Tools": '[{"type": "function"'}.items():
        page.get_by_label(label, exact=True).fill(text)
        expect(page.get_by_label(label, exact=True)).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#hint-tools")).to_contain_text("This is not JSON")
    page.get_by_role("button", name="Done").click()
    send(page, "Hi")
    expect(answers(page)).to_contain_text("Hello!")
    assert not {"temperature", "seed", "tools"} & set(server.requests[0])


def test_a_model_without_thinking_is_not_asked_to(context: BrowserContext, server: FakeChatServer) -> None:
    server.model = {"id": "smollm2-135m", "object": "model"}
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#model")).to_have_text("smollm2-135m")
    expect(page.get_by_role("button", name="Think first")).to_be_hidden()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Thinking budget")).to_have_count(0)
    page.keyboard.press("Escape")
    send(page, "Hi")
    expect(answers(page)).to_contain_text("Hello!")
    assert "enable_thinking" not in server.requests[0]


def test_hostile_answers_stay_text_everywhere(page: Page, server: FakeChatServer) -> None:
    bad = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    server.answer(Think(bad), bad, Call(0, f'{{"x": "{bad}"}}', bad), Finish("tool_calls"))
    send(page, bad)
    expect(page.get_by_role("region", name="Tool call")).to_contain_text("onerror")
    answers(page).locator("summary").click()
    expect(answers(page).locator("details")).to_contain_text("window.hacked")
    assert page.evaluate("window.hacked ?? null") is None
    assert page.locator("#log img, #log script, #chats img").count() == 0
    assert page.title().startswith("<img src=x")


def test_the_view_follows_until_the_reader_scrolls_up(page: Page, server: FakeChatServer) -> None:
    first, second = threading.Event(), threading.Event()
    lines = "\n\n".join(f"Line {n}" for n in range(60))
    server.answer(lines, first, f"\n\n{lines}", second, "\n\nThe end")
    send(page, "Count")
    expect(answers(page)).to_contain_text("Line 59")
    page.wait_for_timeout(50)
    assert page.evaluate(DISTANCE) < 40
    page.locator("#scroller").hover()
    page.mouse.wheel(0, -600)
    expect(page.get_by_role("button", name="Go to the newest text")).to_be_visible()
    before = page.evaluate("document.querySelector('#scroller').scrollTop")
    first.set()
    expect(answers(page).locator("p")).to_have_count(120)
    assert page.evaluate("document.querySelector('#scroller').scrollTop") == before
    page.get_by_role("button", name="Go to the newest text").click()
    second.set()
    expect(answers(page)).to_contain_text("The end")
    page.wait_for_timeout(50)
    assert page.evaluate(DISTANCE) < 40


def test_code_and_messages_are_copied(page: Page, server: FakeChatServer, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    server.answer("Look:\n\n```python\nprint(1)\n```\n")
    send(page, "Code")
    answers(page).get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)"
    answers(page).get_by_role("button", name="Copy answer").click()
    page.wait_for_timeout(50)
    assert page.evaluate("navigator.clipboard.readText()") == "Look:\n\n```python\nprint(1)\n```\n"


def test_the_keyboard_is_enough(page: Page, server: FakeChatServer) -> None:
    field = page.get_by_label("Message", exact=True)
    expect(field).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(answers(page)).to_contain_text("Hello!")
    assert server.requests[0]["messages"][0]["content"] == "one\ntwo"
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("New wording")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(field).to_be_focused()
    page.keyboard.press("Control+Shift+O")
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible()


def test_slow_answers_go_on_while_another_chat_is_open(page: Page, server: FakeChatServer) -> None:
    gate = threading.Event()
    server.answer("Slow ", gate, Pause(0.01), "but done")
    send(page, "Slow one")
    expect(answers(page)).to_contain_text("Slow")
    page.get_by_role("button", name="New chat").click()
    send(page, "Quick one")
    expect(answers(page)).to_contain_text("Hello!")
    gate.set()
    page.get_by_role("button", name="Slow one", exact=True).click()
    expect(answers(page)).to_contain_text("Slow but done")
