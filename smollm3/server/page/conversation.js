// A conversation as a tree of messages, of which one branch is shown. Plain data in and out: no element, no storage.

/**
 * @typedef {{id: string, name: string, arguments: string}} ToolCall
 * @typedef {{start: number, first?: number, last?: number, thought?: number, prompt?: number, cached?: number,
 *   tokens?: number, reasoning?: number}} Stats times in ms, counts in tokens
 * @typedef {{id: string, parent: string, role: "user" | "assistant" | "tool", content: string, created: number,
 *   reasoning?: string, calls?: ToolCall[], callId?: string, finish?: string, error?: {message: string, hint: string},
 *   stats?: Stats, model?: string}} Message `parent` is "" for a first message
 * @typedef {{id: string, title: string, created: number, updated: number, messages: Record<string, Message>,
 *   selected: Record<string, string>}} Conversation `selected` names the shown child of each parent
 */

/** crypto.randomUUID() exists only on https and localhost. */
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");

/** @returns {Conversation} */
export function newConversation() {
  return { id: newId(), title: "New chat", created: Date.now(), updated: Date.now(), messages: {}, selected: {} };
}

/**
 * Add a message below `parent` and show the branch that it begins.
 * @param {Conversation} conversation
 * @param {string} parent
 * @param {Partial<Message> & {role: Message["role"]}} fields
 * @returns {Message}
 */
export function addMessage(conversation, parent, fields) {
  const message = { content: "", ...fields, id: newId(), parent, created: Date.now() };
  conversation.messages[message.id] = message;
  conversation.selected[parent] = message.id;
  conversation.updated = Date.now();
  if (parent === "" && message.role === "user") conversation.title = titleOf(message.content);
  return message;
}

/** Take out a message that nothing hangs on, such as an answer that failed before its first word. */
export function removeMessage(conversation, message) {
  const others = siblings(conversation, message).filter((other) => other !== message);
  delete conversation.messages[message.id];
  if (others.length) conversation.selected[message.parent] = others[others.length - 1].id;
  else delete conversation.selected[message.parent];
}

/** @returns {Message[]} the branch that is shown, first message first */
export function branch(conversation) {
  const shown = [];
  for (let id = conversation.selected[""]; id; id = conversation.selected[id]) {
    const message = conversation.messages[id];
    if (!message || shown.includes(message)) break;
    shown.push(message);
  }
  return shown;
}

/** @returns {Message[]} the versions of a message, itself among them, oldest first */
export function siblings(conversation, message) {
  return Object.values(conversation.messages).filter((other) => other.parent === message.parent);
}

/** @param {string} text @returns {string} the first line, short enough for a list */
function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "New chat";
}

/**
 * The branch up to and including `last` as OpenAI's messages; thinking and failed answers are not sent back.
 * @param {Conversation} conversation
 * @param {Message | undefined} last
 * @param {string} system
 */
export function requestMessages(conversation, last, system) {
  const path = [];
  for (let message = last; message; message = conversation.messages[message.parent]) path.unshift(message);
  const messages = path.map(requestMessage).filter((message) => message !== null);
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

/** @param {Message} message */
function requestMessage(message) {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.callId, content: message.content };
  if (message.role === "user") return { role: "user", content: message.content };
  if (!message.calls?.length) return message.content ? { role: "assistant", content: message.content } : null;
  const calls = message.calls.map(({ id, name, arguments: text }) => ({
    id,
    type: "function",
    function: { name, arguments: text },
  }));
  return { role: "assistant", content: message.content || null, tool_calls: calls };
}

/** @returns {boolean} whether this value, read from storage or a file, can be shown as a conversation */
export function isConversation(value) {
  const isRecord = (thing) => typeof thing === "object" && thing !== null && !Array.isArray(thing);
  return (
    isRecord(value) &&
    ["id", "title"].every((name) => typeof value[name] === "string") &&
    ["created", "updated"].every((name) => Number.isFinite(value[name])) &&
    isRecord(value.selected) &&
    isRecord(value.messages) &&
    Object.values(value.messages).every(
      (m) => isRecord(m) && ["id", "parent", "role", "content"].every((name) => typeof m[name] === "string"),
    )
  );
}

/** @param {Conversation} conversation @returns {string} the branch that is shown, to read */
export function toMarkdown(conversation) {
  const parts = branch(conversation).map((message) => {
    if (message.role === "user") return `## You\n\n${message.content}`;
    if (message.role === "tool") return `### Result\n\n${fenced(message.content, "")}`;
    const thinking = message.reasoning ? `<details><summary>Thinking</summary>\n\n${message.reasoning.trim()}\n\n</details>` : "";
    const calls = (message.calls ?? []).map((call) => `### Calls \`${call.name}\`\n\n${fenced(call.arguments, "json")}`);
    return [`## ${message.model ?? "Assistant"}`, thinking, message.content, ...calls].filter(Boolean).join("\n\n");
  });
  return [`# ${conversation.title}`, ...parts].join("\n\n").concat("\n");
}

/** A fence longer than any in the text. */
function fenced(text, language) {
  const fence = "`".repeat(Math.max(3, ...(text.match(/`+/g) ?? []).map((run) => run.length + 1)));
  return `${fence}${language}\n${text}\n${fence}`;
}

/** @param {Conversation} conversation @returns {string} everything, with the branch that is shown as OpenAI's messages */
export function toJson(conversation) {
  const last = branch(conversation).at(-1);
  const { title, created, selected, messages } = conversation;
  const shown = requestMessages(conversation, last, "");
  return JSON.stringify({ title, created: new Date(created).toISOString(), messages: shown, tree: { selected, messages } }, null, 2);
}
