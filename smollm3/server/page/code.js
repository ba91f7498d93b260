// A block of code: its language, a button that copies it, and lines that are coloured once, when they are complete.

import { copy, el, icon } from "./dom.js";
import { highlightLine } from "./highlight.js";

export class CodeView {
  #language;
  #code = el("code");
  /** @type {string[]} the lines that are drawn for good */
  #done = [];
  /** What the highlighter carries from line to line. */
  #state = "";
  /** @type {HTMLElement | null} the line that still grows */
  #last = null;
  #text = "";

  /** @param {string} language */
  constructor(language) {
    this.#language = language.toLowerCase();
    const button = el("button", { type: "button", class: "copy-code", onclick: () => copy(this.#text, button) }, icon("copy"), "Copy");
    const label = language || "text";
    this.node = el(
      "figure",
      { class: "code" },
      el("figcaption", {}, el("span", {}, label), button),
      el("pre", { tabindex: "0", role: "region", "aria-label": `Code: ${label}` }, this.#code),
    );
  }

  /**
   * Show more lines of the same block.
   * @param {string[]} lines
   * @param {boolean} complete whether the last line is all there
   * @returns {boolean} false if these lines do not continue the ones shown
   */
  update(lines, complete) {
    const whole = complete ? lines.length : lines.length - 1;
    if (whole < this.#done.length || (this.#done.length && lines[this.#done.length - 1] !== this.#done.at(-1))) return false;
    this.#text = lines.join("\n");
    this.#last?.remove();
    this.#last = null;
    for (let index = this.#done.length; index < whole; index += 1) {
      const { nodes, state } = highlightLine(lines[index], this.#language, this.#state);
      this.#state = state;
      this.#code.append(...nodes, "\n");
      this.#done.push(lines[index]);
    }
    if (whole < lines.length && whole >= 0) {
      this.#last = el("span", {}, ...highlightLine(lines[whole], this.#language, this.#state).nodes);
      this.#code.append(this.#last);
    }
    return true;
  }
}
