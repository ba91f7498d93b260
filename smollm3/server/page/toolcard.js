// A tool call as a card: name, arguments as they stream in, and a field for what the tool returns.

import { CodeView } from "./code.js";
import { el, icon } from "./dom.js";
import { pretty } from "./tools.js";

/** @typedef {import("./conversation.js").ToolCall} ToolCall */

export class ToolCard {
  #code = new CodeView("json");
  #name = el("code", { class: "tool-name" });
  #state = el("span", { class: "tool-state" });
  #result = el("div", { class: "tool-result" });
  #shown = "";
  /** @type {any} */
  #field = null;

  constructor() {
    const title = el("header", {}, icon("tool"), this.#name, this.#state);
    this.node = el("section", { class: "tool-card", "aria-label": "Tool call" }, title, this.#code.node, this.#result);
  }

  /**
   * @param {ToolCall} call
   * @param {boolean} complete whether the arguments are all there
   * @param {string | undefined} result
   * @param {boolean} asks whether the reader may give the result now
   */
  update(call, complete, result, asks) {
    this.#name.textContent = call.name;
    const text = complete ? pretty(call.arguments || "{}") : call.arguments;
    if (text !== this.#shown || complete) this.#draw(text, complete);
    this.#state.textContent = !complete ? "writing arguments" : result !== undefined ? "answered" : asks ? "waits for a result" : "called";
    if (result !== undefined) {
      this.#field = null;
      this.#result.replaceChildren(el("span", { class: "label" }, "Result"), el("pre", { tabindex: "0" }, pretty(result)));
    } else if (!asks) {
      this.#field = null;
      this.#result.replaceChildren();
    } else if (!this.#field) {
      this.#field = el("textarea", { rows: 2, placeholder: "What the tool returns, as text or JSON", "aria-label": `Result of ${call.name}` });
      this.#result.replaceChildren(this.#field);
    }
  }

  #draw(text, complete) {
    this.#shown = text;
    if (this.#code.update(text.split("\n"), complete)) return;
    const code = new CodeView("json");
    code.update(text.split("\n"), complete);
    this.#code.node.replaceWith(code.node);
    this.#code = code;
  }

  /** @returns {string} what the reader typed as the result */
  get typed() {
    return this.#field?.value ?? "";
  }
}
