// Chunks of a streamed answer in, a growing message out, with its times and counts. Knows no element.

/** @typedef {import("./conversation.js").Message} Message */

/**
 * Fold one chunk of `chat.completion.chunk` into the message.
 * @param {Message} message
 * @param {any} chunk
 * @param {number} now ms
 */
export function fold(message, chunk, now) {
  const stats = message.stats ?? (message.stats = { start: now });
  if (chunk.model) message.model = chunk.model;
  for (const { delta = {}, finish_reason: finish } of chunk.choices ?? []) {
    const thinking = delta.reasoning_content;
    const answer = delta.content || delta.tool_calls?.length;
    if (thinking || answer) {
      stats.first ??= now;
      stats.last = now;
    }
    if (thinking) message.reasoning = (message.reasoning ?? "") + thinking;
    if (answer && message.reasoning) stats.thought ??= now;
    if (delta.content) message.content += delta.content;
    for (const call of delta.tool_calls ?? []) foldCall(message, call);
    if (finish) message.finish = finish;
  }
  if (chunk.usage) foldUsage(stats, chunk.usage);
}

function foldCall(message, { index = 0, id, function: part = {} }) {
  if (!(index >= 0 && index < 128)) return;
  message.calls ??= [];
  const call = (message.calls[index] ??= { id: `call_${index}`, name: "", arguments: "" });
  if (id) call.id = id;
  call.name += part.name ?? "";
  call.arguments += part.arguments ?? "";
}

function foldUsage(stats, usage) {
  stats.prompt = usage.prompt_tokens;
  stats.tokens = usage.completion_tokens;
  stats.cached = usage.prompt_tokens_details?.cached_tokens;
  stats.reasoning = usage.completion_tokens_details?.reasoning_tokens;
}

/** @param {Message} message @param {number} now ms @returns {number} seconds of thinking so far */
export function thinkingSeconds({ stats }, now) {
  if (!stats?.first) return 0;
  return Math.max(0, (stats.thought ?? now) - stats.first) / 1000;
}

/** @param {number} seconds @returns {string} as people say it: "0.34 s", "4.2 s", "1 min 12 s" */
export function duration(seconds) {
  if (seconds < 1) return `${seconds.toFixed(2)} s`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/**
 * The line below an answer: tokens, speed after the first token, and how long the first one took.
 * @param {Message} message
 * @returns {{text: string, hint: string}}
 */
export function statistics({ stats, finish }) {
  if (!stats?.first || stats.last === undefined) return { text: "", hint: "" };
  const parts = [];
  const seconds = (stats.last - stats.first) / 1000;
  if (stats.tokens) {
    parts.push(`${count(stats.tokens)} ${stats.tokens === 1 ? "token" : "tokens"}`);
    if (stats.tokens > 1 && seconds >= 0.05) parts.push(`${speed((stats.tokens - 1) / seconds)} tokens/s`);
  } else {
    parts.push(duration(seconds));
  }
  parts.push(`first after ${duration((stats.first - stats.start) / 1000)}`);
  if (finish === "stopped") parts.push("stopped");
  const hints = [];
  if (stats.prompt) hints.push(`${count(stats.prompt)} tokens read${stats.cached ? `, ${count(stats.cached)} of them known already` : ""}`);
  if (stats.reasoning) hints.push(`${count(stats.reasoning)} tokens of thinking`);
  return { text: parts.join(" · "), hint: hints.join("; ") };
}

const count = (number) => number.toLocaleString("en");
const speed = (number) => (number < 100 ? number.toFixed(1) : count(Math.round(number)));
