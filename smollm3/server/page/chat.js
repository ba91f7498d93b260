// What happens in a chat: send, stop, answer again, edit, give a tool's result. Knows data and server, no element.

import { ApiError } from "./api.js";
import { fold } from "./answer.js";
import { addMessage, branch, newConversation, removeMessage, requestMessages, siblings } from "./conversation.js";

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Message} Message
 * @typedef {{changed: () => void, grew: (message: Message) => void, failed: (error: ApiError, message: Message) => void,
 *   saved: (conversation: Conversation) => void}} Listener
 */

const SAVE_EVERY = 1000; // ms while an answer grows

export class Chat {
  /** @type {Map<string, {message: Message, controller: AbortController}>} answers under way, by conversation */
  #runs = new Map();
  #client;
  #request;
  #listener;

  /**
   * @param {import("./api.js").Client} client
   * @param {() => Record<string, unknown>} request the settings as fields of a request
   * @param {Listener} listener
   */
  constructor(client, request, listener) {
    this.#client = client;
    this.#request = request;
    this.#listener = listener;
    this.conversation = newConversation();
  }

  /** @returns {Message | undefined} the message of the shown conversation that grows */
  get running() {
    return this.#runs.get(this.conversation.id)?.message;
  }

  /** @param {Conversation} conversation */
  open(conversation) {
    this.conversation = conversation;
    for (const message of Object.values(conversation.messages)) {
      const broken = message.role === "assistant" && !message.finish && !message.error;
      if (broken && message !== this.running) message.finish = "stopped";
    }
    this.#listener.changed();
  }

  /** @param {string} text */
  send(text) {
    if (this.running || !text.trim()) return;
    const last = branch(this.conversation).at(-1);
    const message = addMessage(this.conversation, last?.id ?? "", { role: "user", content: text.trim() });
    void this.#answer(message);
  }

  /** Ask again from a changed message; the old one stays as a version. @param {Message} message @param {string} text */
  edit(message, text) {
    if (this.running) return;
    void this.#answer(addMessage(this.conversation, message.parent, { role: "user", content: text.trim() }));
  }

  /** @param {Message} message an answer */
  regenerate(message) {
    const parent = this.conversation.messages[message.parent];
    if (!this.running && parent) void this.#answer(parent);
  }

  /** Ask again after an error; an answer without a word in it makes way. @param {Message} message */
  retry(message) {
    const parent = this.conversation.messages[message.parent];
    if (this.running || !parent) return;
    if (!message.content && !message.reasoning && !message.calls?.length) removeMessage(this.conversation, message);
    void this.#answer(parent);
  }

  /** Send what the tools returned and go on. @param {Message} message @param {string[]} results in the calls' order */
  answerCalls(message, results) {
    if (this.running) return;
    let last = message;
    (message.calls ?? []).forEach((call, index) => {
      last = addMessage(this.conversation, last.id, { role: "tool", callId: call.id, content: results[index] ?? "" });
    });
    void this.#answer(last);
  }

  /** Show the version before or after. @param {Message} message @param {number} step */
  turn(message, step) {
    const versions = siblings(this.conversation, message);
    const next = versions[versions.indexOf(message) + step];
    if (!next || this.running) return;
    this.conversation.selected[message.parent] = next.id;
    this.#listener.saved(this.conversation);
    this.#listener.changed();
  }

  /** Stop the shown conversation's answer; what is there stays. @param {string} [id] */
  stop(id = this.conversation.id) {
    this.#runs.get(id)?.controller.abort();
  }

  /** @param {Message} last the message to answer */
  async #answer(last) {
    const { conversation } = this;
    const controller = new AbortController();
    const messages = (system) => requestMessages(conversation, last, system);
    const { system = "", ...fields } = this.#request();
    const body = { ...fields, messages: messages(String(system)), stream: true, stream_options: { include_usage: true } };
    const message = addMessage(conversation, last.id, { role: "assistant", stats: { start: performance.now() } });
    this.#runs.set(conversation.id, { message, controller });
    this.#listener.saved(conversation);
    this.#listener.changed();
    // The seconds of thinking go on while nothing comes.
    const clock = setInterval(() => this.#grew(conversation, message), 200);
    try {
      await this.#stream(conversation, message, body, controller.signal);
      message.finish ??= "stop";
    } catch (error) {
      this.#fail(message, error, controller.signal.aborted);
    }
    clearInterval(clock);
    this.#runs.delete(conversation.id);
    conversation.updated = Date.now();
    this.#listener.saved(conversation);
    if (conversation === this.conversation) this.#listener.changed();
  }

  async #stream(conversation, message, body, signal) {
    let saved = performance.now();
    for await (const chunk of this.#client.chat(body, signal, conversation.id)) {
      const now = performance.now();
      fold(message, chunk, now);
      this.#grew(conversation, message);
      if (now - saved < SAVE_EVERY) continue;
      saved = now;
      this.#listener.saved(conversation);
    }
  }

  #grew(conversation, message) {
    if (conversation === this.conversation) this.#listener.grew(message);
  }

  #fail(message, error, stopped) {
    if (stopped) {
      message.finish = "stopped";
      return;
    }
    const known = error instanceof ApiError ? error : new ApiError("This page made a mistake.", { status: 500, hint: String(error) });
    message.error = { message: known.message, hint: known.hint };
    this.#listener.failed(known, message);
  }
}
