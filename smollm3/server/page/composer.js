// The box in which messages are written: grows with the text, Enter sends, and the send button stops an answer.

import { byId, setIcon } from "./dom.js";

export class Composer {
  #field = byId("prompt");
  #button = byId("send");
  #running = false;

  /** @param {{send: (text: string) => void, stop: () => void, editLast: () => void}} actions */
  constructor(actions) {
    this.actions = actions;
    // On a touch screen Enter starts a line: there is no Shift to hold.
    this.touch = matchMedia("(pointer: coarse)").matches;
    byId("hint").hidden = this.touch;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#field.addEventListener("input", () => this.#fit());
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#fit();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !this.touch) {
      event.preventDefault();
      if (!this.#running) this.#submit();
    } else if (event.key === "ArrowUp" && !this.#field.value && !this.#running) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  #submit() {
    if (this.#running) return this.actions.stop();
    const text = this.#field.value;
    if (!text.trim()) return;
    this.#field.value = "";
    this.#fit();
    this.actions.send(text);
  }

  #fit() {
    this.#field.style.height = "auto";
    this.#field.style.height = `${this.#field.scrollHeight}px`;
    this.#button.disabled = !this.#running && !this.#field.value.trim();
  }

  /** @param {boolean} running whether an answer is under way */
  setRunning(running) {
    this.#running = running;
    this.#button.setAttribute("aria-label", running ? "Stop" : "Send");
    this.#button.title = running ? "Stop (Esc)" : "Send";
    this.#button.classList.toggle("stop", running);
    setIcon(this.#button, running ? "stop" : "up");
    this.#fit();
  }

  focus() {
    if (!this.touch) this.#field.focus();
  }

  /** @param {string} text */
  fill(text) {
    this.#field.value = text;
    this.#fit();
    this.#field.focus();
  }
}
