// The list of conversations, by day, and on narrow screens the drawer that it lives in.

import { byId, el, iconButton } from "./dom.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */

/** @param {number} time ms @returns {string} the heading under which a chat is listed */
function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const day = 24 * 3600 * 1000;
  if (time >= midnight) return "Today";
  if (time >= midnight - day) return "Yesterday";
  return time >= midnight - 7 * day ? "Last seven days" : "Earlier";
}

/**
 * Draw the list.
 * @param {Conversation[]} chats newest first
 * @param {string} current the id of the chat that is shown
 * @param {{open: (chat: Conversation) => void, remove: (chat: Conversation) => void}} actions
 */
export function drawChats(chats, current, actions) {
  const rows = [];
  let day = "";
  for (const chat of chats) {
    if (dayOf(chat.updated) !== day) rows.push(el("li", { class: "day" }, (day = dayOf(chat.updated))));
    const open = el("button", { type: "button", class: "chat", dir: "auto", onclick: () => actions.open(chat) }, chat.title);
    if (chat.id === current) open.setAttribute("aria-current", "page");
    rows.push(el("li", {}, open, iconButton("trash", `Delete “${chat.title}”`, () => actions.remove(chat))));
  }
  byId("chats").replaceChildren(...rows);
}

/** Wire up the drawer; returns what closes it. @returns {() => void} */
export function drawer() {
  const [sidebar, shade, button] = [byId("sidebar"), byId("shade"), byId("open-sidebar")];
  const narrow = matchMedia("(max-width: 760px)");
  let isOpen = false;
  const draw = () => {
    sidebar.classList.toggle("open", isOpen);
    sidebar.inert = narrow.matches && !isOpen;
    shade.hidden = !(narrow.matches && isOpen);
    button.setAttribute("aria-expanded", String(isOpen));
  };
  const set = (open) => {
    const had = isOpen;
    isOpen = open;
    draw();
    if (narrow.matches && open) byId("new-chat").focus();
    else if (narrow.matches && had) button.focus();
  };
  button.addEventListener("click", () => set(true));
  shade.addEventListener("click", () => set(false));
  byId("close-sidebar").addEventListener("click", () => set(false));
  sidebar.addEventListener("keydown", (event) => event.key === "Escape" && set(false));
  narrow.addEventListener("change", draw);
  draw();
  return () => isOpen && set(false);
}
