// One line of code in, coloured text out, for the languages that models write most. Unknown ones stay plain.

import { el } from "./dom.js";

const words = (text) => new Set(text.split(" "));
const C_FAMILY = words(
  "abstract as async auto await bool boolean break byte case catch char class const constexpr continue crate def default " +
    "defer delete do double dyn else enum export extends extern false final finally float fn for from func function go goto " +
    "if impl implements import in instanceof int interface internal is let long loop match mod move mut namespace new nil " +
    "null nullptr of operator override package private protected pub public readonly ref return self short signed sizeof " +
    "static string struct super switch template this throw throws trait true try type typedef typename typeof undefined " +
    "unsafe unsigned use using val var virtual void volatile when where while with yield",
);
const PYTHON = words(
  "False None True and as assert async await break case class continue def del elif else except finally for from global if " +
    "import in is lambda match nonlocal not or pass raise return self try while with yield",
);
const SHELL = words("case cd do done echo elif else esac exit export fi for function if in local read return set sudo then until while");
const SQL = words(
  "add all alter and as asc between by case cast check column constraint create cross default delete desc distinct drop " +
    "else end exists false foreign from full group having if in index inner insert into is join key left like limit not " +
    "null offset on or order outer primary references right select set table then true union unique update using values " +
    "view when where with",
);
const LITERALS = words("true false null yes no on off none");

/** @typedef {{words: Set<string>, line?: string, block?: [string, string], quotes: string, triple?: boolean, fold?: boolean}} Language */

/** @type {Record<string, Language>} */
const LANGUAGES = {
  c: { words: C_FAMILY, line: "//", block: ["/*", "*/"], quotes: "\"'`" },
  python: { words: PYTHON, line: "#", quotes: "\"'", triple: true },
  shell: { words: SHELL, line: "#", quotes: "\"'" },
  sql: { words: SQL, line: "--", block: ["/*", "*/"], quotes: "'\"", fold: true },
  data: { words: LITERALS, line: "#", quotes: "\"'" },
  json: { words: LITERALS, line: "//", block: ["/*", "*/"], quotes: '"' },
  css: { words: words("important media import"), block: ["/*", "*/"], quotes: "\"'" },
  markup: { words: new Set(), block: ["<!--", "-->"], quotes: "\"'" },
};
const NAMES = {
  c: "c cpp c++ h hpp cc cs csharp java js javascript jsx ts typescript tsx mjs go golang rust rs swift kotlin kt scala dart php zig",
  python: "python py python3 ipython",
  shell: "bash sh shell zsh console dockerfile makefile make ruby rb r perl",
  sql: "sql sqlite mysql postgresql postgres",
  data: "yaml yml toml ini conf",
  json: "json jsonc json5",
  css: "css scss less",
  markup: "html xml svg vue",
};
/** @type {Map<string, Language>} */
const BY_NAME = new Map(Object.entries(NAMES).flatMap(([kind, names]) => names.split(" ").map((name) => [name, LANGUAGES[kind]])));
const MAX_LINE = 2000;

/**
 * @param {string} line
 * @param {string} name the language as the fence names it, in small letters
 * @param {string} state what is still open from the line before: the end of a comment or string, or ""
 * @returns {{nodes: Node[], state: string}}
 */
export function highlightLine(line, name, state) {
  const language = BY_NAME.get(name);
  if (name === "diff" || name === "patch") return { nodes: [diffLine(line)], state: "" };
  if (!language || line.length > MAX_LINE) return { nodes: [document.createTextNode(line)], state };
  const out = new Pieces();
  let at = 0;
  let open = state;
  while (at < line.length) {
    if (open) {
      const end = line.indexOf(open, at);
      const stop = end < 0 ? line.length : end + open.length;
      out.add(open === language.block?.[1] ? "comment" : "string", line.slice(at, stop));
      if (end >= 0) open = "";
      at = stop;
      continue;
    }
    const [kind, length, opened] = next(line, at, language);
    out.add(kind, line.slice(at, at + length));
    at += length;
    open = opened;
  }
  return { nodes: out.finish(), state: open };
}

/** @returns {[string, number, string]} the kind of the piece at a place, its length, and what it leaves open */
function next(line, at, language) {
  const rest = (text) => line.startsWith(text, at);
  if (language.block && rest(language.block[0])) return ["comment", language.block[0].length, language.block[1]];
  if (language.line && rest(language.line) && (language.line !== "#" || at === 0 || /[\s;]/.test(line[at - 1]))) return ["comment", line.length - at, ""];
  const char = line[at];
  if (language.triple && (rest('"""') || rest("'''"))) return ["string", 3, char.repeat(3)];
  if (language.quotes.includes(char)) {
    const length = stringLength(line, at);
    const named = language === LANGUAGES.json && /^\s*:/.test(line.slice(at + length));
    return [named ? "name" : "string", length, ""];
  }
  if (language === LANGUAGES.markup && char === "<") return ["keyword", match(/<\/?[\w:-]*/y, line, at), ""];
  const number = match(/(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)/y, line, at);
  if (number) return ["number", number, ""];
  const length = match(/[\p{L}_$@][\p{L}\p{N}_$]*/uy, line, at);
  if (!length) return ["", Math.max(1, match(/[^\p{L}\p{N}_$@"'`#/<*-]+/uy, line, at)), ""];
  const word = line.slice(at, at + length);
  if (language.words.has(language.fold ? word.toLowerCase() : word)) return ["keyword", length, ""];
  if (language === LANGUAGES.data || language === LANGUAGES.css) return [/^[\w-]*\s*[:=]/.test(line.slice(at)) ? "name" : "", length, ""];
  return [line[at + length] === "(" ? "call" : "", length, ""];
}

/** @returns {number} how many characters a sticky pattern matches at a place */
function match(pattern, line, at) {
  pattern.lastIndex = at;
  return pattern.exec(line)?.[0].length ?? 0;
}

function stringLength(line, at) {
  const quote = line[at];
  for (let end = at + 1; end < line.length; end += 1) {
    if (line[end] === "\\") end += 1;
    else if (line[end] === quote) return end + 1 - at;
  }
  // A lone apostrophe, as in Rust's lifetimes, is no string.
  return quote === "'" ? 1 : line.length - at;
}

function diffLine(line) {
  const kind = line.startsWith("+") ? "added" : line.startsWith("-") ? "removed" : line.startsWith("@@") ? "comment" : "";
  return kind ? el("span", { class: `hl-${kind}` }, line) : document.createTextNode(line);
}

/** Pieces of one line; neighbours of a kind become one element. */
class Pieces {
  #nodes = [];
  #kind = "";
  #text = "";

  add(kind, text) {
    if (kind !== this.#kind) this.#flush(kind);
    this.#text += text;
  }

  finish() {
    this.#flush("");
    return this.#nodes;
  }

  #flush(kind) {
    if (this.#text) this.#nodes.push(this.#kind ? el("span", { class: `hl-${this.#kind}` }, this.#text) : document.createTextNode(this.#text));
    this.#kind = kind;
    this.#text = "";
  }
}
