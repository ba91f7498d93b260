// Conversations and settings in this browser's localStorage, each chat under a key of its own, within a bound.

import { isConversation } from "./conversation.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */

const CHAT = "smollm3.chat.";
const LIMIT = 4_000_000; // characters; browsers stop at about 5 million

export class Store {
  /** @type {Map<string, Conversation>} */
  #chats = new Map();
  #sizes = new Map();
  /** Whether the browser lets the page keep anything at all. */
  works = true;
  /** How many stored chats could not be read. */
  damaged = 0;

  constructor(limit = LIMIT) {
    this.limit = limit;
    try {
      localStorage.setItem("smollm3.probe", "");
      localStorage.removeItem("smollm3.probe");
      for (const key of Object.keys(localStorage)) if (key.startsWith(CHAT)) this.#read(key);
    } catch {
      this.works = false;
    }
  }

  /** @param {string} key */
  #read(key) {
    const text = localStorage.getItem(key) ?? "";
    this.#sizes.set(key.slice(CHAT.length), key.length + text.length);
    const chat = parse(text);
    if (isConversation(chat) && key === CHAT + chat.id) this.#chats.set(chat.id, chat);
    else this.damaged += 1;
  }

  /** @returns {Conversation[]} newest first */
  list() {
    return [...this.#chats.values()].sort((a, b) => b.updated - a.updated);
  }

  /** @param {string} id */
  get(id) {
    return this.#chats.get(id);
  }

  /** @returns {number} how much of the bound is taken, 0 to 1 */
  get used() {
    return [...this.#sizes.values()].reduce((sum, size) => sum + size, 0) / this.limit;
  }

  /**
   * Keep a conversation. It stays in memory even where the browser has no room for it.
   * @param {Conversation} chat
   * @returns {boolean} whether it will be there after a reload
   */
  save(chat) {
    this.#chats.set(chat.id, chat);
    const text = JSON.stringify(chat);
    const before = this.#sizes.get(chat.id) ?? 0;
    const size = CHAT.length + chat.id.length + text.length;
    if (size > before && this.used * this.limit - before + size > this.limit) return false;
    if (!write(CHAT + chat.id, text)) return false;
    this.#sizes.set(chat.id, size);
    return true;
  }

  /** @param {string} id */
  remove(id) {
    this.#chats.delete(id);
    this.#sizes.delete(id);
    if (this.works) localStorage.removeItem(CHAT + id);
  }

  /** Take over what another tab wrote. @param {string | null} key @returns {string | undefined} the chat's id */
  reload(key) {
    if (!key?.startsWith(CHAT)) return undefined;
    const id = key.slice(CHAT.length);
    this.#chats.delete(id);
    this.#sizes.delete(id);
    if (localStorage.getItem(key) !== null) this.#read(key);
    return id;
  }
}

/** @returns {any} the stored value, or undefined */
export function readValue(name) {
  try {
    return parse(localStorage.getItem(`smollm3.${name}`) ?? "");
  } catch {
    return undefined;
  }
}

/** Keep a small value; null takes it out. @returns {boolean} whether it is kept */
export function writeValue(name, value) {
  return write(`smollm3.${name}`, value === null ? null : JSON.stringify(value));
}

function write(key, text) {
  try {
    if (text === null) localStorage.removeItem(key);
    else localStorage.setItem(key, text);
    return true;
  } catch {
    return false;
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
