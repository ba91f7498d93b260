// The inside of a line of Markdown in, nodes out: emphasis, code, links. Every word ends in a text node.

import { el } from "./dom.js";

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const MAX_LINK = 2000;
const MAX_LABEL = 500;
const MAX_DEPTH = 8;

/** @typedef {{mark: string, count: number, opens: boolean, closes: boolean, firm: boolean}} Run
 *   a run of `*`, `_` or `~`; a firm one is taken for an opening before its end is seen */

/**
 * @param {string} text
 * @param {boolean} open more may follow: an unfinished mark counts as if it were closed at the end
 * @param {number} depth
 * @returns {Node[]}
 */
export function inline(text, open = false, depth = 0) {
  const source = open ? withoutUnfinishedEnd(text) : text;
  /** @type {(Node | Run)[]} */
  const parts = [];
  let plain = "";
  const flush = () => {
    if (plain) parts.push(document.createTextNode(plain));
    plain = "";
  };
  for (let at = 0; at < source.length; ) {
    const [part, end] = read(source, at, open, depth);
    if (typeof part === "string") plain += part;
    else {
      flush();
      parts.push(part);
    }
    at = end;
  }
  flush();
  return emphasize(parts, open);
}

/** What stands at the end of text that still grows: marks, a label that may become a link's, a part of an address. */
function withoutUnfinishedEnd(text) {
  return text
    .replace(/!?\[([^[\]\n]{0,200})\]\([^()\s]{0,2000}$/, "$1")
    .replace(/!?\[[^[\]\n]{0,80}\]?$/, "")
    .replace(/[*_~`\\!]{1,3}$/, "");
}

/** @returns {[string | Node | Run, number]} the piece that begins at a place, and the place after it */
function read(text, at, open, depth) {
  const char = text[at];
  if (char === "\\") return readEscape(text, at);
  if (char === "\n") return [el("br"), at + 1];
  if (char === "`") return readCode(text, at, open);
  if ("*_~".includes(char)) return readRun(text, at);
  if (depth < MAX_DEPTH && (char === "[" || (char === "!" && text[at + 1] === "["))) return readLink(text, at, depth) ?? [char, at + 1];
  if (char === "<") return readAngle(text, at) ?? [char, at + 1];
  if (char === "h" && !/\w/.test(text[at - 1] ?? "")) return readAddress(text, at) ?? [char, at + 1];
  const rest = /[^\\\n`*_~[!<h]+/y;
  rest.lastIndex = at;
  const plain = rest.exec(text)?.[0] ?? char;
  return [plain, at + plain.length];
}

/** `\(x\)` and `\[x\]` are formulas, shown as they are written; before other punctuation a backslash vanishes. */
function readEscape(text, at) {
  const next = text[at + 1] ?? "";
  if (next === "(" || next === "[") {
    const rest = text.slice(at + 2, at + MAX_LINK);
    const length = rest.indexOf(next === "(" ? "\\)" : "\\]");
    if (length >= 0) return [el("span", { class: "formula" }, rest.slice(0, length).trim()), at + length + 4];
    return [`\\${next}`, at + 2];
  }
  if (next === "\n") return [el("br"), at + 2];
  return PUNCTUATION.test(next) ? [next, at + 2] : ["\\", at + 1];
}

function readCode(text, at, open) {
  const run = /`+/y;
  run.lastIndex = at;
  const ticks = /** @type {RegExpExecArray} */ (run.exec(text))[0];
  const begin = at + ticks.length;
  const closing = new RegExp(`(?<!\`)\`{${ticks.length}}(?!\`)`, "g");
  closing.lastIndex = begin;
  const close = closing.exec(text.slice(0, begin + MAX_LINK));
  if (!close && !(open && begin < text.length)) return [ticks, begin];
  const content = text.slice(begin, close?.index).replaceAll("\n", " ");
  const padded = content.startsWith(" ") && content.endsWith(" ") && content.trim() !== "";
  const trimmed = padded ? content.slice(1, -1) : content;
  return [el("code", {}, trimmed), close ? close.index + ticks.length : text.length];
}

/** Whether a run of marks can open or close emphasis, by what stands on its sides (CommonMark's flanking rules). */
function readRun(text, at) {
  const mark = text[at];
  let end = at;
  while (text[end] === mark) end += 1;
  const before = text[at - 1] ?? " ";
  const after = text[end] ?? " ";
  const isSpace = (char) => /\s/.test(char);
  const isPunctuation = (char) => PUNCTUATION.test(char) || /[\p{P}\p{S}]/u.test(char);
  const left = !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before));
  const right = !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after));
  const word = mark === "_";
  const opens = left && (!word || !right || isPunctuation(before));
  const closes = right && (!word || !left || isPunctuation(after));
  if (mark === "~" && end - at !== 2) return [text.slice(at, end), end];
  const firm = end - at > 1 || isSpace(before) || isPunctuation(before);
  return [{ mark, count: end - at, opens, closes, firm }, end];
}

/** `[text](address "title")`; a picture becomes a link to it, since the page fetches nothing from elsewhere. */
function readLink(text, at, depth) {
  const picture = text[at] === "!";
  const begin = at + (picture ? 2 : 1);
  const end = closingBracket(text, begin);
  if (end < 0 || text[end + 1] !== "(") return undefined;
  const target = /\(\s*(?:<([^<>\n]*)>|((?:[^\s()]|\([^\s()]*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
  target.lastIndex = end + 1;
  const found = target.exec(text.slice(0, end + MAX_LINK));
  if (!found) return undefined;
  const label = inline(text.slice(begin, end), false, depth + 1);
  const address = found[1] ?? found[2] ?? "";
  return [link(address, label.length ? label : [address], picture), target.lastIndex];
}

function closingBracket(text, begin) {
  let nesting = 0;
  for (let at = begin; at < Math.min(text.length, begin + MAX_LABEL); at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "[") nesting += 1;
    else if (text[at] === "]" && nesting-- === 0) return at;
  }
  return -1;
}

function readAngle(text, at) {
  const found = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
  found.lastIndex = at;
  const address = found.exec(text)?.[1];
  if (address) return [link(address, [address.replace(/^mailto:/, "")], false), found.lastIndex];
  const lineBreak = /<br ?\/?>/iy;
  lineBreak.lastIndex = at;
  return lineBreak.test(text) ? [el("br"), lineBreak.lastIndex] : undefined;
}

function readAddress(text, at) {
  const found = /https?:\/\/[^\s<>"'`*]{1,2000}/y;
  found.lastIndex = at;
  let address = found.exec(text)?.[0].replace(/[.,:;!?\]_~]+$/, "");
  if (!address) return undefined;
  if (address.endsWith(")") && !address.includes("(")) address = address.replace(/\)+[.,:;!?]*$/, "");
  return [link(address, [address], false), at + address.length];
}

/**
 * A link that opens elsewhere and tells where it leads; anything but http, https and mailto stays text.
 * @param {string} address
 * @param {(Node | string)[]} label
 * @param {boolean} picture
 */
export function link(address, label, picture) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return el("span", {}, ...label);
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return el("span", {}, ...label);
  const name = picture ? ["Picture: ", ...label] : label;
  return el("a", { href: url.href, title: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...name);
}

/** Wrap what stands between matching runs; runs that match nothing are text. */
function emphasize(parts, open) {
  /** @type {{nodes: Node[], run: Run | null}[]} each level is what follows an opening run */
  const levels = [{ nodes: [], run: null }];
  for (const part of parts) {
    if (part instanceof Node) {
      levels[levels.length - 1].nodes.push(part);
      continue;
    }
    const run = { ...part };
    while (run.closes && run.count) {
      const match = levels.findLastIndex((level) => level.run && pairs(level.run, run));
      if (match < 0) break;
      while (levels.length - 1 > match) giveUp(levels);
      closeLevel(levels, run);
    }
    if (!run.count) continue;
    if (run.opens && levels.length < 32) levels.push({ nodes: [], run });
    else levels[levels.length - 1].nodes.push(document.createTextNode(run.mark.repeat(run.count)));
  }
  while (levels.length > 1) {
    const { run } = levels[levels.length - 1];
    if (open && run?.firm) closeLevel(levels, { ...run });
    else giveUp(levels);
  }
  return levels[0].nodes;
}

const pairs = (opener, closer) =>
  opener.mark === closer.mark && !((opener.closes || closer.opens) && (opener.count + closer.count) % 3 === 0 && opener.count % 3);

/** The innermost level's run was no opening after all. */
function giveUp(levels) {
  const { nodes, run } = levels.pop();
  const outer = levels[levels.length - 1];
  outer.nodes = outer.nodes.concat(document.createTextNode(run.mark.repeat(run.count)), nodes);
}

function closeLevel(levels, closer) {
  const level = levels[levels.length - 1];
  const opener = level.run;
  const count = opener.mark === "~" ? 2 : Math.min(2, opener.count, closer.count);
  const tag = opener.mark === "~" ? "del" : count === 2 ? "strong" : "em";
  const node = el(tag);
  for (const inner of level.nodes) node.append(inner);
  opener.count -= count;
  closer.count -= count;
  if (opener.count > 0) level.nodes = [node];
  else {
    levels.pop();
    levels[levels.length - 1].nodes.push(node);
  }
}
