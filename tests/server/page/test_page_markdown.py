"""The page's Markdown in a real browser: what is drawn, how it grows, and what hostile text comes to."""

from typing import Any

import pytest
from fake_chat_server import FakeChatServer
from playwright.sync_api import BrowserContext, Error, Page

DRAW = """async (texts) => {
  const { MarkdownView } = await import("/page/markdown.js");
  return texts.map((text) => {
    const root = document.createElement("div");
    new MarkdownView(root).update(text, true);
    for (const node of root.querySelectorAll("*")) {
      const kept = ["href", "start", "type", "checked", "data-align"];
      for (const { name } of [...node.attributes]) if (!kept.includes(name)) node.removeAttribute(name);
    }
    for (const node of root.querySelectorAll("figcaption, svg")) node.remove();
    return root.innerHTML;
  });
}"""
# Text that grows by one character at a time: what is shown at each length, and whether settled elements stay.
GROW = """async (text) => {
  const { MarkdownView } = await import("/page/markdown.js");
  const root = document.createElement("div"), whole = document.createElement("div");
  const view = new MarkdownView(root);
  const shown = [];
  let settled = [];
  let kept = true;
  for (let end = 1; end <= text.length; end += 1) {
    view.update(text.slice(0, end), false);
    kept &&= settled.every((node, index) => root.children[index] === node);
    settled = [...root.children].slice(0, -2);
    shown.push(root.textContent);
  }
  view.update(text, true);
  new MarkdownView(whole).update(text, true);
  return { shown, kept, same: root.innerHTML === whole.innerHTML, text: root.textContent };
}"""

DRAWN = {
    "plain\nline": "<p>plain<br>line</p>",
    "# One\n## Two\n\nThree\n---": "<h3>One</h3><h4>Two</h4><h4>Three</h4>",
    "**bold** *it* _it_ ***both*** ~~gone~~ snake_case_name 2*3*4": (
        "<p><strong>bold</strong> <em>it</em> <em>it</em> <em><strong>both</strong></em> <del>gone</del> "
        "snake_case_name 2<em>3</em>4</p>"
    ),
    "a * b ** c": "<p>a * b ** c</p>",
    r"\*not\* \_it\_": "<p>*not* _it_</p>",
    "**open": "<p>**open</p>",
    "`a*b*` ``x`y``": "<p><code>a*b*</code> <code>x`y</code></p>",
    "- a\n- b\n  - c\n\nend": (
        "<ul><li><span>a</span></li><li><span>b</span><ul><li><span>c</span></li></ul></li></ul><p>end</p>"
    ),
    "3. a\n4. b": '<ol start="3"><li><span>a</span></li><li><span>b</span></li></ol>',
    "1. a\n\n2. b": "<ol><li><p>a</p></li><li><p>b</p></li></ol>",
    "1. a\n  - b": "<ol><li><span>a</span><ul><li><span>b</span></li></ul></li></ol>",
    "- [x] a\n- [ ] b": (
        '<ul><li><input type="checkbox" checked=""><span>a</span></li>'
        '<li><input type="checkbox"><span>b</span></li></ul>'
    ),
    "> a\nb\n\nc": "<blockquote><p>a<br>b</p></blockquote><p>c</p>",
    "---": "<hr>",
    "```zz\n<b>&amp;\n```\nx": "<figure><pre><code>&lt;b&gt;&amp;amp;\n</code></pre></figure><p>x</p>",
    "~~~\na\n```\n~~~": "<figure><pre><code>a\n```\n</code></pre></figure>",
    "| a | b |\n|:-:|--:|\n| `x|y` | \\| |\n| 1 |": (
        '<div><table><thead><tr><th data-align="center">a</th><th data-align="end">b</th></tr></thead>'
        '<tbody><tr><td data-align="center"><code>x|y</code></td><td data-align="end">|</td></tr>'
        '<tr><td data-align="center">1</td><td data-align="end"></td></tr></tbody></table></div>'
    ),
    "a | b, and no table": "<p>a | b, and no table</p>",
    "[a *b*](https://x.org/p(1) 'title')": '<p><a href="https://x.org/p(1)">a <em>b</em></a></p>',
    "<https://x.org> https://y.org/a_b. (https://z.org)": (
        '<p><a href="https://x.org/">https://x.org</a> <a href="https://y.org/a_b">https://y.org/a_b</a>. '
        '(<a href="https://z.org/">https://z.org</a>)</p>'
    ),
    "![cat](https://x.org/c.png)": '<p><a href="https://x.org/c.png">Picture: cat</a></p>',
    "[mail](mailto:a@b.org) [rel](/path) [js](javascript:alert(1))": (
        '<p><a href="mailto:a@b.org">mail</a> <span>rel</span> <span>js</span></p>'
    ),
    r"\(x_1 * y_2\) costs $5": "<p><span>x_1 * y_2</span> costs $5</p>",
    "a<br>b <i>c</i>": "<p>a<br>b &lt;i&gt;c&lt;/i&gt;</p>",
    "a\r\nb\r\n\r\n- c\r\n": "<p>a<br>b</p><ul><li><span>c</span></li></ul>",
}
DOCUMENT = """# Title with **weight**

Some **bold**, *slanted* and `code`, a [link](https://example.org/path) and ~~old~~ words.

1. First
   - inner *one*
   - inner two
2. Second

| Name | Count |
|:-----|------:|
| one  | 1 |
| two  | 2 |

```python
def f(x):
    return x - 1
```

> Quoted **text**

---

Last words."""


def test_markdown_is_drawn(page: Page) -> None:
    drawn = page.evaluate(DRAW, list(DRAWN))
    assert dict(zip(DRAWN, drawn, strict=True)) == DRAWN


def test_text_that_grows_ends_as_if_it_had_come_at_once(page: Page) -> None:
    for text in (DOCUMENT, *DRAWN, DOCUMENT.replace("\n", "\r\n")):
        grown = page.evaluate(GROW, text)
        assert grown["same"], text
        assert grown["kept"], text


def test_no_mark_flickers_while_text_grows(page: Page) -> None:
    """What is shown of a part is the beginning of what is shown of the whole: no mark comes and goes."""
    grown = page.evaluate(GROW, DOCUMENT)
    wrong = [text for text in grown["shown"] if not grown["text"].startswith(text.rstrip("\n"))]
    assert wrong == []


HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<svg/onload=window.hacked=1><iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "[x](javascript:window.hacked=1) [x](JaVaScRiPt:window.hacked=1) [x](java\tscript:window.hacked=1)",
    "[x](&#106;avascript:window.hacked=1) [x](data:text/html,<script>hacked=1</script>) [x](vbscript:x)",
    "[x](\x01javascript:window.hacked=1) <javascript:window.hacked=1> [x](<javascript:window.hacked=1>)",
    '[x](https://a.org" onmouseover="window.hacked=1) ![x](https://a.org/"onload="hacked=1)',
    "![x](javascript:window.hacked=1) ![pixel](https://elsewhere.example/track.gif)",
    "```html onload=window.hacked=1\n<script>window.hacked=1</script>\n```",
    '```"><img src=x onerror=window.hacked=1>\nx\n```',
    "| <img src=x onerror=hacked=1> |\n|--|\n| <script>hacked=1</script> |",
    "# <style>*{display:none}</style>\n- <base href=https://elsewhere.example/>\n> <form action=//x><input>",
    "<a href=javascript:hacked=1>x</a> <math><mtext></mtext><script>hacked=1</script></math>",
    "[a](https://x.org)" * 3 + "]]>--><!--<![CDATA[" + "\x00\u202e\ufeff",
]
LOOK = """async (texts) => {
  const { MarkdownView } = await import("/page/markdown.js");
  const root = document.createElement("div");
  document.body.append(root);
  for (const done of [false, true]) for (const text of texts) {
    const part = document.createElement("div");
    root.append(part);
    const view = new MarkdownView(part);
    for (let end = 1; end <= text.length; end += 1) view.update(text.slice(0, end), false);
    view.update(text, done);
  }
  for (const link of root.querySelectorAll("a")) link.dispatchEvent(new MouseEvent("mouseover"));
  await new Promise((resolve) => setTimeout(resolve, 50));
  const nodes = [...root.querySelectorAll("*")];
  const found = {
    tags: [...new Set(nodes.map((node) => node.localName))].sort(),
    attributes: [...new Set(nodes.flatMap((node) => node.getAttributeNames()))].sort(),
    protocols: [...new Set([...root.querySelectorAll("a")].map((link) => link.protocol))].sort(),
    rel: [...new Set([...root.querySelectorAll("a")].map((link) => link.rel))],
    hacked: window.hacked ?? null,
  };
  root.remove();
  return found;
}"""


def test_hostile_text_stays_text(page: Page) -> None:
    found: dict[str, Any] = page.evaluate(LOOK, HOSTILE)
    assert found["hacked"] is None
    assert not set(found["tags"]) & {
        "script",
        "img",
        "iframe",
        "style",
        "base",
        "form",
        "math",
        "object",
        "link",
    }
    assert not [
        name for name in found["attributes"] if name.startswith("on") or name in ("src", "style", "srcdoc")
    ]
    assert set(found["protocols"]) <= {"http:", "https:", "mailto:"}
    assert found["rel"] == ["noopener noreferrer nofollow"]


def test_the_policy_refuses_markup_from_text_even_if_a_module_tried(
    context: BrowserContext, server: FakeChatServer
) -> None:
    page = context.new_page()
    page.goto(server.url)
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.createElement('div').innerHTML = '<b>x</b>'")


TIME = """async ([text, step]) => {
  const { MarkdownView } = await import("/page/markdown.js");
  const root = document.createElement("div");
  const view = new MarkdownView(root);
  const begin = performance.now();
  for (let end = step; end < text.length; end += step) view.update(text.slice(0, end), false);
  view.update(text, true);
  return performance.now() - begin;
}"""


def test_long_answers_are_drawn_faster_than_any_model_writes(page: Page) -> None:
    """Ten thousand tokens, drawn four hundred times on the way; the limit leaves a busy machine much room."""
    texts = {
        "mixed": DOCUMENT * 90,
        "code": "```python\n" + "for index in range(10):  # count\n" * 1200,
        "list": "- an item with **words**\n" * 1600,
        "paragraph": "words with *marks*, " * 500,
    }
    times = {kind: page.evaluate(TIME, [text, 100]) for kind, text in texts.items()}
    assert max(times.values()) < 4_000, times


# Beginnings that never end, again and again: what regular expressions and searches stumble over.
ENDLESS = [
    "[", "![", "*a ", "**a", "`", "`` ` ", ">", "> ", "- ", "1. ", "| ", "#", " ", "\t", "_a_ ", "~~", "<",
    "\\(", "](", "[x](", "-", "a\n", "- a\n  ", "http://", "((((", "[[]](", "|-|\n",
    "```\n", "\\", "<br", "a|", "!",
]  # fmt: skip


def test_no_text_makes_the_page_stall(page: Page) -> None:
    texts = {unit: unit * (20_000 // len(unit)) + "x" for unit in ENDLESS}
    times = {unit: page.evaluate(TIME, [text, len(text) // 2]) for unit, text in texts.items()}
    assert max(times.values()) < 6_000, times
