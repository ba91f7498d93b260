// What the reader sets: fields on the page, kept in this browser, and turned into fields of a request.

import { byId, el } from "./dom.js";
import { readValue, writeValue } from "./store.js";
import { EXAMPLE_TOOLS, readTools } from "./tools.js";

/**
 * @typedef {{name: string, label: string, hint: string, kind: "text" | "number" | "tools", min?: number, max?: number,
 *   whole?: boolean, thinks?: boolean}} Field `thinks`: only where the model has a thinking mode
 */

/** @type {Field[]} */
const FIELDS = [
  { name: "system", label: "System prompt", hint: "How the model should behave. Sent first in every request.", kind: "text" },
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest word", kind: "number", min: 0, max: 2 },
  { name: "top_p", label: "Top p", hint: "Draw from the likeliest words that make up this share", kind: "number", min: 0, max: 1 },
  { name: "max_completion_tokens", label: "Longest answer", hint: "In tokens, thinking included", kind: "number", min: 1, whole: true },
  { name: "seed", label: "Seed", hint: "The same seed gives the same answer again", kind: "number", min: 0, whole: true },
  { name: "thinking_budget", label: "Thinking budget", hint: "Tokens of thinking at most", kind: "number", min: 1, whole: true, thinks: true },
  { name: "tools", label: "Tools", hint: "A JSON list of functions the model may call; you type what they return.", kind: "tools" },
];

export class Settings {
  /** @type {Record<string, string>} as typed */
  #typed = {};
  #box = byId("fields");
  /** Whether the model's template has a thinking mode, as the server says. */
  canThink = false;

  /** @param {() => void} changed */
  constructor(changed) {
    this.changed = changed;
    const kept = readValue("settings");
    for (const { name } of FIELDS) if (typeof kept?.[name] === "string") this.#typed[name] = kept[name];
    this.thinks = kept?.thinks !== false;
    byId("reset-settings").addEventListener("click", () => this.#reset());
  }

  open() {
    this.#draw();
    byId("settings").showModal();
  }

  #reset() {
    this.#typed = {};
    this.#keep();
    this.#draw();
  }

  /** @param {boolean} thinks */
  setThinks(thinks) {
    this.thinks = thinks;
    this.#keep();
  }

  #keep() {
    writeValue("settings", { ...this.#typed, thinks: this.thinks });
    this.changed();
  }

  #draw() {
    const fields = FIELDS.filter((field) => !field.thinks || this.canThink);
    this.#box.replaceChildren(...fields.map((field) => this.#field(field)));
  }

  /** @param {Field} field */
  #field(field) {
    const value = this.#typed[field.name] ?? "";
    const number = field.kind === "number";
    const rows = field.kind === "tools" ? 8 : 3;
    const attributes = number ? { inputmode: "decimal", placeholder: "the server's default", autocomplete: "off" } : { rows, spellcheck: field.kind === "text" };
    const input = /** @type {any} */ (el(number ? "input" : "textarea", { ...attributes, id: `set-${field.name}`, "aria-describedby": `hint-${field.name}` }));
    input.value = value;
    const hint = el("span", { class: "field-hint", id: `hint-${field.name}`, "aria-live": "polite" });
    const check = () => {
      const wrong = problem(field, input.value);
      hint.textContent = wrong || field.hint;
      hint.classList.toggle("wrong", Boolean(wrong));
      input.setAttribute("aria-invalid", String(Boolean(wrong)));
    };
    input.addEventListener("input", () => {
      this.#typed[field.name] = input.value;
      check();
      this.#keep();
    });
    check();
    const parts = [el("label", { for: input.id }, field.label), input, hint];
    if (field.kind === "tools") {
      const fill = () => {
        input.value = EXAMPLE_TOOLS;
        input.dispatchEvent(new Event("input"));
      };
      parts.push(el("button", { type: "button", class: "quiet", onclick: fill }, "Put in an example"));
    }
    return el("div", { class: `field ${field.kind}` }, ...parts);
  }

  /** @returns {number} how many tools a request will carry */
  get toolCount() {
    return readTools(this.#typed.tools ?? "").tools.length;
  }

  /** @returns {Record<string, unknown>} fields of a request; what is empty or wrong is left to the server's defaults */
  request() {
    /** @type {Record<string, unknown>} */
    const fields = {};
    for (const field of FIELDS) {
      const text = (this.#typed[field.name] ?? "").trim();
      if (!text || problem(field, text) || (field.thinks && !(this.canThink && this.thinks))) continue;
      fields[field.name] = field.kind === "number" ? Number(text) : field.kind === "tools" ? readTools(text).tools : text;
    }
    if (Array.isArray(fields.tools) && !fields.tools.length) delete fields.tools;
    if (this.canThink) fields.enable_thinking = this.thinks;
    return fields;
  }
}

/** @param {Field} field @param {string} text @returns {string} what is wrong with it, "" for nothing */
function problem(field, text) {
  if (!text.trim() || field.kind === "text") return "";
  if (field.kind === "tools") return readTools(text).error;
  const { min = 0, max = Number.MAX_SAFE_INTEGER, whole } = field;
  const value = Number(text.trim());
  const fits = Number.isFinite(value) && value >= min && value <= max && (!whole || Number.isInteger(value));
  if (fits) return "";
  return max === Number.MAX_SAFE_INTEGER ? `A whole number from ${min} up` : `A number from ${min} to ${max}`;
}
