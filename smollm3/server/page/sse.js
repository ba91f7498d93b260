// Server-sent events out of a byte stream: bytes in, the data of each event out. Knows nothing of chats.

/**
 * Yield the data of each event; comments and other fields are passed over, as the standard has it.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Takes text in pieces of any size and gives whole events; a line may end in \n, \r\n or \r. */
export class EventParser {
  #rest = "";
  /** @type {string[]} */
  #data = [];

  /** @param {string} text @returns {string[]} the data of the events that this text completes */
  push(text) {
    const events = [];
    // A \r at the very end waits: the \n that may belong to it is not here yet.
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  }
}
