// Growing Markdown in, elements out: only the last block is parsed and drawn again when text is added.

import { parseBlocks } from "./blocks.js";
import { CodeView } from "./code.js";
import { el } from "./dom.js";
import { inline } from "./inline.js";

/** @typedef {import("./blocks.js").Block} Block */

/** Shows text that only grows. What is settled is never touched again, so a selection in it stays. */
export class MarkdownView {
  #root;
  #text = "";
  #settled = 0;
  #blocks;

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
    this.#blocks = new BlockList(root);
  }

  /**
   * Show the whole text so far; `done` when nothing follows.
   * @param {string} text
   * @param {boolean} done
   */
  update(text, done) {
    if (text.length < this.#text.length) this.#restart();
    this.#text = text;
    const raw = text.slice(this.#settled).split("\n");
    const lines = raw.map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line));
    const blocks = parseBlocks(lines, !done);
    this.#blocks.update(blocks, !done);
    // The line that still grows may yet turn out to belong to the block before it.
    const sure = blocks.findLastIndex((block) => block.first < lines.length - 1);
    if (sure <= 0) return;
    for (let line = 0; line < blocks[sure].first; line += 1) this.#settled += raw[line].length + 1;
    this.#blocks.settle(sure);
  }

  #restart() {
    this.#root.replaceChildren();
    this.#settled = 0;
    this.#blocks = new BlockList(this.#root);
  }
}

/**
 * The blocks inside one element, each with the key by which it is known to be unchanged.
 * @typedef {{key: string, node: HTMLElement, update: (block: any, open: boolean) => boolean}} Entry
 */
class BlockList {
  #parent;
  /** @type {Entry[]} */
  #entries = [];

  /** @param {HTMLElement} parent */
  constructor(parent, tight = false) {
    this.#parent = parent;
    this.tight = tight;
  }

  /** @param {Block[]} blocks @param {boolean} open whether the last block may still grow */
  update(blocks, open) {
    blocks.forEach((block, index) => {
      const grows = open && index === blocks.length - 1;
      const key = `${block.type} ${grows} ${block.source}`;
      const entry = this.#entries[index];
      if (entry?.key === key) return;
      if (entry?.update(block, grows)) entry.key = key;
      else this.#replace(index, { key, ...draw(block, grows, this.tight) });
    });
    for (const { node } of this.#entries.splice(blocks.length)) node.remove();
  }

  #replace(index, entry) {
    const old = this.#entries[index];
    if (old) old.node.replaceWith(entry.node);
    else this.#parent.append(entry.node);
    this.#entries[index] = entry;
  }

  /** Forget the first blocks; their elements stay. @param {number} count */
  settle(count) {
    this.#entries.splice(0, count);
  }
}

const never = () => false;

/** @returns {Omit<Entry, "key">} a block's element, and how it takes in a longer version of itself */
function draw(block, open, tight) {
  if (block.type === "code") return drawCode(block, open);
  if (block.type === "list") return drawList(block, open);
  if (block.type === "quote") return drawQuote(block, open);
  if (block.type === "table") return { node: drawTable(block, open), update: never };
  if (block.type === "rule") return { node: el("hr"), update: never };
  // The page's own headings are levels 1 and 2.
  const tag = block.type === "heading" ? `h${Math.min(6, block.level + 2)}` : tight ? "span" : "p";
  const node = el(tag, { dir: "auto", ...(block.type === "heading" ? { "data-level": block.level } : {}) });
  const fill = (text, grows) => {
    node.replaceChildren();
    for (const part of inline(text, grows)) node.append(part);
  };
  fill(block.text, open);
  const update = (next, grows) => {
    if (next.type !== block.type || next.level !== block.level) return false;
    fill(next.text, grows);
    return true;
  };
  return { node, update };
}

function drawCode(block, open) {
  const view = new CodeView(block.language);
  view.update(block.lines, block.closed || !open);
  const update = (next, grows) => {
    if (next.type !== "code" || next.language !== block.language) return false;
    return view.update(next.lines, next.closed || !grows);
  };
  return { node: view.node, update };
}

function drawQuote(block, open) {
  const node = el("blockquote");
  const list = new BlockList(node);
  list.update(block.blocks, open);
  const update = (next, grows) => {
    if (next.type !== "quote") return false;
    list.update(next.blocks, grows);
    return true;
  };
  return { node, update };
}

function drawList(block, open) {
  const start = block.ordered && block.start !== 1 ? block.start : null;
  const node = el(block.ordered ? "ol" : "ul", { start, dir: "auto" });
  /** @type {{source: string, grows: boolean, checked: boolean | null, list: BlockList}[]} */
  const shown = [];
  const fill = (items, listGrows) => {
    items.forEach((item, index) => {
      const grows = listGrows && index === items.length - 1;
      const old = shown[index];
      if (old?.source === item.source && old.grows === grows) return;
      if (old && old.checked === item.checked) Object.assign(old, { source: item.source, grows }).list.update(item.blocks, grows);
      else shown[index] = drawItem(node, index, item, grows, block.tight);
    });
    shown.splice(items.length);
    while (node.children.length > items.length) node.lastChild?.remove();
  };
  fill(block.items, open);
  const update = (next, grows) => {
    if (next.type !== "list" || next.ordered !== block.ordered || next.tight !== block.tight || next.start !== block.start) return false;
    fill(next.items, grows);
    return true;
  };
  return { node, update };
}

function drawItem(parent, index, item, grows, tight) {
  const task = item.checked === null ? null : el("input", { type: "checkbox", disabled: true, checked: item.checked, "aria-label": item.checked ? "done" : "to do" });
  const node = el("li", task ? { class: "task" } : {}, task);
  const list = new BlockList(node, tight);
  list.update(item.blocks, grows);
  const old = parent.children[index];
  if (old) old.replaceWith(node);
  else parent.append(node);
  return { source: item.source, grows, checked: item.checked, list };
}

function drawTable({ align, rows }, open) {
  const row = (cells, tag, grows) =>
    el("tr", {}, ...cells.map((cell, column) => {
      const scope = tag === "th" ? "col" : null;
      return el(tag, { dir: "auto", scope, "data-align": align[column] || null }, ...inline(cell, grows));
    }));
  const [header, ...body] = rows;
  const lines = body.map((cells, index) => row(cells, "td", open && index === body.length - 1));
  const table = el("table", {}, el("thead", {}, row(header, "th", open && !body.length)), el("tbody", {}, ...lines));
  return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}
