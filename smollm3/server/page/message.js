// One message on the page. It is drawn from its data again and again while it grows, and keeps what has not changed.

import { duration, statistics, thinkingSeconds } from "./answer.js";
import { copy, el, icon, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { ToolCard } from "./toolcard.js";

/**
 * @typedef {import("./conversation.js").Message} Message
 * @typedef {{edit: (message: Message, text: string) => void, regenerate: (message: Message) => void,
 *   retry: (message: Message) => void, answerCalls: (message: Message, results: string[]) => void,
 *   turn: (message: Message, step: number) => void}} Actions
 * @typedef {{running: boolean, busy: boolean, last: boolean, results: Map<string, string>, versions: Message[]}} Place
 *   where a message stands: `running` while it grows, `busy` while any answer of the chat does
 */

/** "2 of 3" with a button on either side, where a message has several versions. */
function versionButtons(message, { versions, busy }, turn) {
  if (versions.length < 2) return null;
  const index = versions.indexOf(message);
  const older = iconButton("back", "Older version", () => turn(message, -1));
  const newer = iconButton("forward", "Newer version", () => turn(message, 1));
  older.toggleAttribute("disabled", busy || index === 0);
  newer.toggleAttribute("disabled", busy || index === versions.length - 1);
  return el("span", { class: "versions" }, older, `${index + 1} of ${versions.length}`, newer);
}

export class UserView {
  #actions;
  #text = el("div", { class: "bubble", dir: "auto" });
  #foot = el("div", { class: "foot" });

  /** @param {Message} message @param {Actions} actions */
  constructor(message, actions) {
    this.message = message;
    this.#actions = actions;
    this.#text.textContent = message.content;
    this.node = el("article", { class: "message user", "aria-label": "You" }, this.#text, this.#foot);
  }

  /** @param {Place} place */
  update(place) {
    const copyButton = iconButton("copy", "Copy message", () => copy(this.message.content, copyButton));
    const edit = iconButton("edit", "Edit message", () => this.edit());
    edit.toggleAttribute("disabled", place.busy);
    this.#foot.replaceChildren(...[versionButtons(this.message, place, this.#actions.turn), copyButton, edit].filter((part) => part !== null));
  }

  /** Turn the message into a field; sending it begins a new branch. */
  edit() {
    const field = el("textarea", { "aria-label": "New wording", rows: 1 });
    field.value = this.message.content;
    const close = () => this.node.replaceChildren(this.#text, this.#foot);
    const send = () => {
      if (!field.value.trim()) return;
      close();
      this.#actions.edit(this.message, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const buttons = el(
      "div",
      { class: "buttons" },
      el("button", { type: "button", class: "quiet", onclick: close }, "Cancel"),
      el("button", { type: "button", class: "primary", onclick: send }, "Send"),
    );
    this.node.replaceChildren(el("div", { class: "editor" }, field, buttons));
    field.focus();
  }
}

export class AnswerView {
  #actions;
  #thinking = el("details", { class: "thinking", hidden: true });
  #summary = el("span", {});
  #thoughts = el("div", { class: "prose" });
  #text = el("div", { class: "prose" });
  #calls = el("div", { class: "calls" });
  #notice = el("div", { class: "notice" });
  #foot = el("div", { class: "foot" });
  #wait = el("div", { class: "wait", "aria-hidden": "true" }, el("span"), el("span"), el("span"));
  #thoughtsView = new MarkdownView(this.#thoughts);
  #textView = new MarkdownView(this.#text);
  /** @type {ToolCard[]} */
  #cards = [];
  /** What text, thoughts and notice were drawn from last: the same again is not drawn. */
  #drawn = { text: "", thoughts: "", notice: "" };

  /** @param {Message} message @param {Actions} actions */
  constructor(message, actions) {
    this.message = message;
    this.#actions = actions;
    this.#thinking.append(el("summary", {}, icon("fold"), this.#summary), this.#thoughts);
    this.#thinking.addEventListener("toggle", () => this.#drawThinking(false, true));
    this.node = el("article", { class: "message answer", "aria-label": "Answer" });
    this.node.append(this.#thinking, this.#text, this.#calls, this.#wait, this.#notice, this.#foot);
  }

  /** @param {Place} place */
  update(place) {
    const { content, reasoning, calls = [] } = this.message;
    const { running } = place;
    this.node.setAttribute("aria-busy", String(running));
    this.node.classList.toggle("running", running);
    this.#wait.hidden = !running || Boolean(content || reasoning || calls.length);
    this.#drawThinking(running);
    const key = `${running && !calls.length} ${content}`;
    if (key !== this.#drawn.text) this.#textView.update(content, !running || calls.length > 0);
    this.#drawn.text = key;
    this.#drawCalls(place);
    this.#drawNotice();
    this.#drawFoot(place);
  }

  /** Folded thoughts are not drawn until somebody opens them. */
  #drawThinking(running, toggled = false) {
    const { reasoning = "", stats } = this.message;
    this.#thinking.hidden = !reasoning;
    if (!reasoning) return;
    if (!toggled) {
      const active = running && stats?.thought === undefined;
      const seconds = duration(thinkingSeconds(this.message, active ? performance.now() : (stats?.last ?? 0)));
      this.#summary.textContent = active ? `Thinking for ${seconds}` : `Thought for ${seconds}`;
      this.#thinking.classList.toggle("active", active);
    }
    const key = `${running} ${reasoning}`;
    if (!this.#thinking.open || key === this.#drawn.thoughts) return;
    this.#thoughtsView.update(reasoning, !running);
    this.#drawn.thoughts = key;
  }

  #drawCalls({ running, results, last, busy }) {
    const { calls = [] } = this.message;
    const asks = last && !busy && !this.message.error;
    calls.forEach((call, index) => {
      let card = this.#cards[index];
      if (!card) this.#calls.append((card = this.#cards[index] = new ToolCard()).node);
      card.update(call, !running || index < calls.length - 1, results.get(call.id), asks);
    });
    const button = this.#calls.querySelector(":scope > .send-results");
    if (!asks || !calls.length) button?.remove();
    else if (!button) {
      const send = () => this.#actions.answerCalls(this.message, this.#cards.map((card) => card.typed));
      this.#calls.append(el("button", { type: "button", class: "primary send-results", onclick: send }, calls.length > 1 ? "Send the results" : "Send the result"));
    }
  }

  #drawNotice() {
    const { error, finish } = this.message;
    const key = error ? `${error.message} ${error.hint}` : finish === "length" ? "length" : "";
    if (key === this.#drawn.notice) return;
    this.#drawn.notice = key;
    this.#notice.className = error ? "notice error" : "notice";
    if (error) {
      const retry = el("button", { type: "button", onclick: () => this.#actions.retry(this.message) }, "Try again");
      const words = el("div", {}, el("p", {}, error.message), error.hint && el("p", { class: "hint" }, error.hint));
      this.#notice.replaceChildren(icon("warning"), words, retry);
      this.#notice.setAttribute("role", "alert");
    } else {
      this.#notice.removeAttribute("role");
      const words = "The answer ends here because it reached the limit on tokens. Ask to go on, or raise the limit in the settings.";
      this.#notice.replaceChildren(...(key ? [el("p", {}, words)] : []));
    }
  }

  #drawFoot(place) {
    if (place.running) return this.#foot.replaceChildren();
    const { text, hint } = statistics(this.message);
    const parts = [versionButtons(this.message, place, this.#actions.turn)];
    if (this.message.content) {
      const copyButton = iconButton("copy", "Copy answer", () => copy(this.message.content, copyButton));
      parts.push(copyButton);
    }
    const again = iconButton("redo", "Answer again", () => this.#actions.regenerate(this.message));
    again.toggleAttribute("disabled", place.busy);
    if (!this.message.error) parts.push(again);
    parts.push(text ? el("span", { class: "stats", title: hint || null }, text) : null);
    return this.#foot.replaceChildren(...parts.filter((part) => part !== null));
  }
}
