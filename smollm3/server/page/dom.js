// Elements from plain values. Text only ever becomes text nodes and attributes, never markup.

/** @typedef {string | Node | null | undefined | false} Child */

/**
 * Make an element. Keys that start with "on" are listeners, true and false set and leave out an attribute.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...Child} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child || child === ""));
  return element;
}

/** @param {string} id @returns {any} the element with this id */
export const byId = (id) => document.getElementById(id);

const PATHS = {
  back: "M15 5l-7 7 7 7",
  bulb: "M9 18h6M10 21h4M8.5 15a6 6 0 1 1 7 0c-.6.5-.9 1.2-1 2h-5c-.1-.8-.4-1.5-1-2z",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM5 15V4h10",
  down: "M12 5v14M6 13l6 6 6-6",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  fold: "M9 6l6 6-6 6",
  forward: "M9 5l7 7-7 7",
  menu: "M4 7h16M4 12h16M4 17h16",
  moon: "M20 14.5A8 8 0 1 1 9.5 4a6.5 6.5 0 0 0 10.5 10.5z",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  plus: "M12 5v14M5 12h14",
  redo: "M20 12a8 8 0 1 1-2.5-5.8M20 4v4.5h-4.5",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  stop: "M7 7h10v10H7z",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M5 19l1.4-1.4M17.6 6.4L19 5",
  tool: "M9 4C6 4 6.5 7 6 9.5 5.7 11 4.5 12 3.5 12c1 0 2.2 1 2.5 2.5.5 2.5 0 5.5 3 5.5M15 4c3 0 2.5 3 3 5.5.3 1.5 1.5 2.5 2.5 2.5-1 0-2.2 1-2.5 2.5-.5 2.5 0 5.5-3 5.5",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  up: "M12 19V5M6 11l6-6 6 6",
  warning: "M12 4l9 16H3zM12 10v4M12 17h.01",
};

/** @param {keyof typeof PATHS} name @returns {SVGElement} */
export function icon(name) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(namespace, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Put the icon that `data-icon` names in front of an element's content. */
export function setIcon(element, name) {
  element.querySelector(":scope > .icon")?.remove();
  element.prepend(icon(name));
}

/**
 * A button with an icon: its label is read out and shown as a hint.
 * @param {keyof typeof PATHS} name
 * @param {string} label
 * @param {(event: Event) => void} onclick
 */
export function iconButton(name, label, onclick) {
  return el("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick }, icon(name));
}

let toastTimer = 0;

/**
 * Say something for a few seconds, to eyes and screen readers.
 * @param {string} text
 * @param {{label: string, run: () => void}} [action]
 */
export function toast(text, action) {
  const box = byId("toast");
  clearTimeout(toastTimer);
  const close = () => box.replaceChildren();
  const run = () => {
    close();
    action?.run();
  };
  box.replaceChildren(el("span", {}, text), ...(action ? [el("button", { type: "button", onclick: run }, action.label)] : []));
  toastTimer = setTimeout(close, action ? 8000 : 3000);
}

/** Copy text, and say on the button whether that worked. @param {string} text @param {HTMLElement} button */
export async function copy(text, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copied = copyBySelection(text);
  }
  toast(copied ? "Copied" : "This browser does not let the page copy");
  if (!copied) return;
  setIcon(button, "check");
  setTimeout(() => setIcon(button, "copy"), 1500);
}

/** Copying where the page came over plain HTTP from another machine, which has no clipboard interface. */
function copyBySelection(text) {
  const box = el("textarea", { class: "hidden", "aria-hidden": "true", tabindex: "-1" });
  box.value = text;
  const focused = /** @type {HTMLElement | null} */ (document.activeElement);
  document.body.append(box);
  box.select();
  const copied = document.execCommand("copy");
  box.remove();
  focused?.focus();
  return copied;
}
