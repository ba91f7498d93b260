// Which model answers and whether the server is there: asked at the start, and again and again after it was lost.

import { byId } from "./dom.js";
import { readValue, writeValue } from "./store.js";

/** @typedef {"connecting" | "ready" | "offline" | "locked" | "broken"} State */

const WORDS = { connecting: "Connecting", ready: "Ready", offline: "No connection", locked: "A key is needed", broken: "Not working" };
const RETRY_AFTER = [1000, 2000, 3000, 5000];

/** The API key: for this tab, or kept in the browser if the reader says so. */
export class Key {
  #value = this.#stored();

  #stored() {
    try {
      return sessionStorage.getItem("smollm3.key") ?? readValue("key") ?? "";
    } catch {
      return "";
    }
  }

  get value() {
    return this.#value;
  }

  /** @param {string} value @param {boolean} keep */
  set(value, keep) {
    this.#value = value;
    writeValue("key", keep && value ? value : null);
    try {
      sessionStorage.setItem("smollm3.key", value);
    } catch {
      // The key then lasts as long as the page.
    }
  }
}

export class Connection {
  #client;
  #timer = 0;
  #tries = 0;
  /** @type {State} */
  state = "connecting";
  /** What the server said when something failed last. */
  problem = "";
  /** @type {{id: string, [fact: string]: unknown} | null} */
  model = null;

  /** @param {import("./api.js").Client} client @param {(connection: Connection, before: State) => void} changed */
  constructor(client, changed) {
    this.#client = client;
    this.changed = changed;
    addEventListener("online", () => this.state === "offline" && this.check());
  }

  /** Ask the server for its model. */
  async check() {
    clearTimeout(this.#timer);
    try {
      this.model = await this.#client.model();
      this.#tries = 0;
      this.#set("ready");
    } catch (error) {
      this.lost(error);
    }
  }

  /** A request failed: find out what that says about the server. @param {any} error */
  lost({ status, message }) {
    this.problem = message;
    if (status === 401) this.#set("locked");
    else if (status === 0 || status === 502 || status === 503) {
      this.#set("offline");
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.check(), RETRY_AFTER[Math.min(this.#tries++, RETRY_AFTER.length - 1)]);
    } else if (!this.model) this.#set("broken");
  }

  /** @param {State} state */
  #set(state) {
    const before = this.state;
    this.state = state;
    const dot = byId("state");
    dot.dataset.state = state;
    dot.title = WORDS[state];
    byId("model").textContent = this.model?.id ?? WORDS[state];
    this.changed(this, before);
  }
}
