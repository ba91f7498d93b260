"""Server-sent events as the page reads them: any cut, any line end, and what is not an event."""

from playwright.sync_api import Page

PARSE = """async (pieces) => {
  const { EventParser } = await import("/page/sse.js");
  const parser = new EventParser();
  return pieces.flatMap((piece) => parser.push(piece));
}"""
READ = """async (chunks) => {
  const { readEvents } = await import("/page/sse.js");
  const body = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(new Uint8Array(chunk));
      controller.close();
    },
  });
  const events = [];
  for await (const event of readEvents(body)) events.push(event);
  return events;
}"""
STREAM = (
    'data: {"a": 1}\r\n\r\n: a comment\n\ndata:two\ndata: lines\n\n'
    "event: ping\nid: 7\n\rdata: last\r\rdata: unfinished"
)
EVENTS = ['{"a": 1}', "two\nlines", "last"]


def test_any_cut_gives_the_same_events(page: Page) -> None:
    assert page.evaluate(PARSE, [STREAM]) == EVENTS
    assert page.evaluate(PARSE, list(STREAM)) == EVENTS
    for cut in range(len(STREAM)):
        assert page.evaluate(PARSE, [STREAM[:cut], STREAM[cut:]]) == EVENTS, cut


def test_bytes_cut_inside_a_character_are_put_together(page: Page) -> None:
    data = "data: Grüße 🐟\n\n".encode()
    assert page.evaluate(READ, [[byte] for byte in data]) == ["Grüße 🐟"]
