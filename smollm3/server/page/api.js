// The server as the page sees it: OpenAI's interface over fetch. Knows no element and no conversation.

import { readEvents } from "./sse.js";

/** What went wrong, in words for the reader; `status` is 0 when the server could not be reached. */
export class ApiError extends Error {
  /** @param {string} message @param {{status?: number, hint?: string}} [details] */
  constructor(message, { status = 0, hint = "" } = {}) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

const HINTS = {
  404: "Is this a server with OpenAI's interface?",
  413: "The chat has become too large for the server. Start a new one, or edit an earlier message.",
  503: "The server is starting or shutting down.",
};

export class Client {
  /** @param {() => string} key returns the API key, "" for none */
  constructor(key) {
    this.key = key;
  }

  /** @returns {Promise<{id: string, [fact: string]: unknown}>} the model that the server offers first */
  async model() {
    const response = await this.#request("v1/models", {});
    const { data } = await response.json();
    if (!Array.isArray(data) || typeof data[0]?.id !== "string") throw new ApiError("The server names no model.");
    return data[0];
  }

  /**
   * Ask for an answer and yield its chunks as they come; throws ApiError, also for an error inside the stream.
   * @param {object} body
   * @param {AbortSignal} signal
   * @param {string} session where several processes serve, one of them holds what this conversation has said
   */
  async *chat(body, signal, session) {
    const response = await this.#request("v1/chat/completions", {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "X-Session-ID": session },
      signal,
    });
    if (!response.body) throw new ApiError("The server sent an empty answer.");
    let complete = false;
    try {
      for await (const data of readEvents(response.body)) {
        if (data === "[DONE]") {
          complete = true;
          break;
        }
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(messageOf(chunk) ?? "The server stopped with an error.", { status: 500 });
        yield chunk;
      }
    } catch (error) {
      throw asApiError(error, "The connection broke before the answer was complete.");
    }
    if (!complete) throw new ApiError("The connection ended before the answer was complete.");
  }

  /** @param {string} path @param {RequestInit} options */
  async #request(path, options) {
    const headers = { ...options.headers, ...(this.key() ? { Authorization: `Bearer ${this.key()}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
    } catch (error) {
      throw asApiError(error, "The server cannot be reached. Is it still running?");
    }
    if (!response.ok) throw await errorOf(response);
    return response;
  }
}

/** The error in a response: OpenAI's message where there is one, else the status. @param {Response} response */
async function errorOf(response) {
  const text = await response.text().catch(() => "");
  let message;
  try {
    message = messageOf(JSON.parse(text));
  } catch {
    message = undefined;
  }
  const wait = response.headers.get("Retry-After");
  const hint = response.status === 429 && wait ? `There is room again in about ${wait} s.` : (HINTS[response.status] ?? "");
  return new ApiError(message ?? `The server answered with status ${response.status}.`, { status: response.status, hint });
}

/** @param {any} body @returns {string | undefined} the message of OpenAI's error body */
function messageOf(body) {
  const message = body?.error?.message ?? body?.error;
  return typeof message === "string" && message ? message : undefined;
}

/** Fetch and streams throw TypeError for a lost connection; a stop by the reader stays what it is. */
function asApiError(error, message) {
  if (error instanceof ApiError || error?.name === "AbortError") return error;
  if (error instanceof SyntaxError) return new ApiError("The server sent something that is not JSON.", { status: 500 });
  return new ApiError(message);
}
