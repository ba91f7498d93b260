// The branch of a conversation that is shown, as elements: one view per message, kept as long as the message is there.

import { branch, siblings } from "./conversation.js";
import { AnswerView, UserView } from "./message.js";

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Message} Message
 */

export class Thread {
  #log;
  #actions;
  /** @type {Map<string, UserView | AnswerView>} */
  #views = new Map();
  #frame = 0;
  /** @type {() => void} */
  #pending = () => {};

  /** @param {HTMLElement} log @param {import("./message.js").Actions} actions */
  constructor(log, actions) {
    this.#log = log;
    this.#actions = actions;
  }

  /**
   * Show a conversation's branch; `running` is the message that grows, if any.
   * @param {Conversation} conversation
   * @param {Message | undefined} running
   */
  show(conversation, running) {
    const shown = branch(conversation);
    const results = new Map(shown.filter((m) => m.role === "tool").map((m) => [m.callId ?? "", m.content]));
    const messages = shown.filter((message) => message.role !== "tool");
    const views = messages.map((message) => this.#view(message));
    this.#views = new Map(views.map((view) => [view.message.id, view]));
    views.forEach((view, index) => {
      const { message } = view;
      const place = { results, versions: siblings(conversation, message), busy: Boolean(running) };
      view.update({ ...place, running: message === running, last: index === views.length - 1 });
      if (this.#log.children[index] !== view.node) this.#log.insertBefore(view.node, this.#log.children[index] ?? null);
    });
    while (this.#log.children.length > views.length) this.#log.lastChild?.remove();
  }

  /** @param {Message} message */
  #view(message) {
    const known = this.#views.get(message.id);
    if (known?.message === message) return known;
    return message.role === "user" ? new UserView(message, this.#actions) : new AnswerView(message, this.#actions);
  }

  /** Draw a growing message, at most once a frame. @param {Message} message */
  grow(message) {
    this.#pending = () => {
      const place = { running: true, busy: true, last: true, results: new Map(), versions: [] };
      this.#views.get(message.id)?.update(place);
    };
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#pending();
    });
  }

  /** Stop a drawing that is due: the whole branch is drawn next. */
  settle() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
  }

  /** Open the newest message of the reader for editing. */
  editLast() {
    const views = [...this.#views.values()].filter((view) => view instanceof UserView);
    /** @type {UserView | undefined} */ (views.at(-1))?.edit();
  }
}
