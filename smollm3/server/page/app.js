// The page: makes the parts and ties them together.

import { Client } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Connection, Key } from "./connection.js";
import { branch, newConversation, toJson, toMarkdown } from "./conversation.js";
import { byId, el, setIcon, toast } from "./dom.js";
import { StickyScroll } from "./scroll.js";
import { Settings } from "./settings.js";
import { drawChats, drawer } from "./sidebar.js";
import { Store, readValue, writeValue } from "./store.js";
import { Thread } from "./thread.js";

const EXAMPLES = [
  ["Explain something", "Why is the sky blue, but the sunset red? Explain it to a curious twelve-year-old."],
  ["Write code", "Write a Python function that finds the longest palindrome in a string, with a few tests."],
  ["Compare", "Compare bicycles, trams and electric cars for a city of 200,000 people, in a table."],
  ["Rewrite", "Rewrite this so that it is friendly and short: “Your request cannot be processed at this time.”"],
];

for (const element of document.querySelectorAll("[data-icon]")) setIcon(element, /** @type {any} */ (element).dataset.icon);

const store = new Store();
const key = new Key();
const client = new Client(() => key.value);
const settings = new Settings(drawChips);
const chat = new Chat(client, request, {
  changed: draw,
  grew: (message) => thread.grow(message),
  failed: (error) => {
    connection.lost(error);
    if (error.status === 401) askForKey(error.message);
  },
  saved: save,
});
const thread = new Thread(byId("log"), {
  edit: (...edited) => answer(() => chat.edit(...edited)),
  regenerate: (message) => answer(() => chat.regenerate(message)),
  retry: (message) => answer(() => chat.retry(message)),
  answerCalls: (...answered) => answer(() => chat.answerCalls(...answered)),
  turn: (message, step) => chat.turn(message, step),
});
const scroll = new StickyScroll(byId("scroller"), byId("log"), byId("to-end"));
const composer = new Composer({
  send: (text) => answer(() => chat.send(text)),
  stop: () => chat.stop(),
  editLast: () => thread.editLast(),
});
const connection = new Connection(client, connectionChanged);
const closeDrawer = drawer();

/** @returns {Record<string, unknown>} what every request carries */
function request() {
  return { model: connection.model?.id ?? "default", ...settings.request() };
}

/** Ask for an answer and follow it; the button that was pressed goes, so the focus needs a place. */
function answer(ask) {
  ask();
  scroll.toEnd();
  composer.focus();
}

function draw() {
  thread.settle();
  thread.show(chat.conversation, chat.running);
  const empty = branch(chat.conversation).length === 0;
  byId("empty").hidden = !empty;
  byId("chat-menu-button").hidden = empty;
  composer.setRunning(Boolean(chat.running));
  document.title = empty ? "SmolLM3" : `${chat.conversation.title} · SmolLM3`;
  drawList();
}

function drawList() {
  drawChats(store.list(), chat.conversation.id, { open: openChat, remove: removeChat });
  const used = Math.round(store.used * 100);
  byId("storage").textContent = used >= 50 ? `Room for chats: ${Math.min(100, used)} % used` : "";
}

function drawChips() {
  const [thinking, tools] = [byId("thinking"), byId("tools")];
  thinking.hidden = !settings.canThink;
  thinking.setAttribute("aria-pressed", String(settings.thinks));
  tools.hidden = settings.toolCount === 0;
  tools.querySelector("span:last-child").textContent = settings.toolCount === 1 ? "1 tool" : `${settings.toolCount} tools`;
}

// --- chats -----------------------------------------------------------------------------------------------------

function save(conversation) {
  const kept = store.save(conversation);
  if (conversation === chat.conversation) writeValue("open", conversation.id);
  if (!kept) banner(store.works ? FULL : NOTHING_KEPT, "storage");
  else clearBanner("storage");
  drawList();
}

const FULL = "This browser has no room for more chats: what is new here will be gone after a reload. Export this chat, or delete older ones.";
const NOTHING_KEPT = "This browser keeps nothing for this page: chats will be gone after a reload.";

function openChat(conversation) {
  chat.open(conversation);
  writeValue("open", conversation.id);
  place();
  closeDrawer();
  composer.focus();
}

/** A conversation opens at its end, the examples at their beginning. */
function place() {
  if (branch(chat.conversation).length) scroll.toEnd();
  else scroll.toStart();
}

function newChat() {
  openChat(branch(chat.conversation).length ? newConversation() : chat.conversation);
}

function removeChat(conversation) {
  chat.stop(conversation.id);
  store.remove(conversation.id);
  if (conversation === chat.conversation) openChat(newConversation());
  else drawList();
  clearBanner("storage");
  const undo = () => {
    save(conversation);
    openChat(conversation);
  };
  toast("Chat deleted", { label: "Undo", run: undo });
}

function download(text, type, ending) {
  const name = chat.conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "chat";
  const address = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: address, download: `${name}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  byId("chat-menu").hidePopover();
}

// --- server ----------------------------------------------------------------------------------------------------

function connectionChanged({ state, model, problem }, before) {
  settings.canThink = model?.thinking === true;
  drawChips();
  if (state === "ready") {
    clearBanner("server");
    if (before === "offline") toast("The server is back");
  } else if (state === "offline") banner("The server cannot be reached. Trying again.", "server");
  else if (state === "broken") banner(`The server does not name its model: ${problem}`, "server");
  else if (state === "locked" && before !== "locked") askForKey("");
}

/** Show a line above the conversation until its cause has gone. @param {string} text @param {string} cause */
function banner(text, cause) {
  const box = byId("banner");
  if (box.textContent !== text) box.textContent = text;
  box.dataset.cause = cause;
  box.hidden = false;
}

function clearBanner(cause) {
  const box = byId("banner");
  if (box.dataset.cause === cause) box.hidden = true;
}

function askForKey(message) {
  const dialog = byId("key-dialog");
  byId("key-message").textContent = message;
  byId("key-message").hidden = !message;
  byId("key").value = "";
  if (!dialog.open) dialog.showModal();
}

async function useKey() {
  const value = byId("key").value.trim();
  if (!value) return;
  key.set(value, byId("keep-key").checked);
  await connection.check();
  const last = branch(chat.conversation).at(-1);
  if (connection.state === "locked") askForKey("The server does not take this key.");
  else if (connection.state === "ready" && last?.error) chat.retry(last);
}

// --- theme, keys, start ----------------------------------------------------------------------------------------

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";

function drawTheme() {
  setIcon(byId("theme"), isDark() ? "sun" : "moon");
  byId("theme").querySelector("span").textContent = isDark() ? "Light mode" : "Dark mode";
}

function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("smollm3.theme", theme);
  } catch {
    // Then the choice lasts as long as the page.
  }
  drawTheme();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLElement && event.target.matches("input, textarea");
  if (event.key === "Escape" && chat.running && !document.querySelector("dialog[open]")) chat.stop();
  else if (event.key === "/" && !typing && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    byId("prompt").focus();
  } else if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    newChat();
  }
});
const clicks = {
  "new-chat": newChat,
  theme: switchTheme,
  "open-settings": () => settings.open(),
  tools: () => settings.open(),
  thinking: () => settings.setThinks(!settings.thinks),
  "export-markdown": () => download(toMarkdown(chat.conversation), "text/markdown", "md"),
  "export-json": () => download(toJson(chat.conversation), "application/json", "json"),
  "delete-chat": () => {
    byId("chat-menu").hidePopover();
    removeChat(chat.conversation);
  },
};
for (const [id, run] of Object.entries(clicks)) byId(id).addEventListener("click", run);
byId("key-dialog").querySelector("form").addEventListener("submit", () => void useKey());
byId("key-dialog").querySelector("[data-close]").addEventListener("click", () => byId("key-dialog").close());
systemDark.addEventListener("change", drawTheme);
addEventListener("storage", (event) => {
  const id = store.reload(event.key);
  const current = id === chat.conversation.id && !chat.running ? store.get(id) : undefined;
  if (current) chat.open(current);
  else if (id) drawList();
});

const fill = (text) => () => composer.fill(text);
byId("examples").append(
  ...EXAMPLES.map(([label, text]) => el("button", { type: "button", onclick: fill(text) }, el("strong", {}, label), el("span", {}, text))),
);
drawTheme();
chat.open(store.get(readValue("open")) ?? newConversation());
if (!store.works) banner(NOTHING_KEPT, "storage");
else if (store.damaged) banner("Some stored chats could not be read and are not listed.", "storage");
place();
composer.focus();
void connection.check();
