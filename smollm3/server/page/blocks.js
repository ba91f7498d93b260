// Lines of Markdown in, a list of blocks out. Plain data: knows no element and nothing of what is inside a line.

/**
 * @typedef {{type: "paragraph", text: string}} Paragraph
 * @typedef {{type: "heading", level: number, text: string}} Heading
 * @typedef {{type: "code", language: string, lines: string[], closed: boolean}} Code
 * @typedef {{type: "rule"}} Rule
 * @typedef {{type: "quote", blocks: Block[]}} Quote
 * @typedef {{blocks: Block[], checked: boolean | null, source: string}} Item
 * @typedef {{type: "list", ordered: boolean, start: number, tight: boolean, items: Item[]}} List
 * @typedef {{type: "table", align: string[], rows: string[][]}} Table the first row is the header
 * @typedef {(Paragraph | Heading | Code | Rule | Quote | List | Table) & {first: number, source: string}} Block
 *   `first` is the index of the block's first line, `source` its text
 */

const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})[ \t]*(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t](.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( *)([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*))?$/;
const SETEXT = /^ {0,3}(=+|-+)[ \t]*$/;
const DELIMITERS = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/;
// The beginning of a line whose kind is not certain yet: not shown while more may come.
const UNCERTAIN = /^(?:#{1,6}|[-*+_=|: \t]+|\d{1,9}[.)]?|`{1,2}|~{1,2}|>|!?\[)?$/;
const MAX_DEPTH = 12;

/**
 * Parse lines into blocks. With `open`, the last line may still grow.
 * @param {string[]} lines
 * @param {boolean} open
 * @param {number} depth
 * @returns {Block[]}
 */
export function parseBlocks(lines, open, depth = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const last = open && at === lines.length - 1;
    if (last && (isUncertain(lines[at]) || FENCE.test(lines[at]))) break;
    const [block, end] = parseBlock(lines, at, open, depth);
    blocks.push({ ...block, first: at, source: lines.slice(at, end).join("\n") });
    at = end;
  }
  return blocks;
}

const isBlank = (line) => line.trim() === "";
const isUncertain = (line) => UNCERTAIN.test(line.trim());

/** @returns {[any, number]} the block that begins at a line, and the line after it */
function parseBlock(lines, at, open, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return parseCode(lines, at, open);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, text: headingText(heading[2] ?? "") }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(line)) return parseQuote(lines, at, open, depth);
    if (MARKER.test(line)) return parseList(lines, at, open, depth);
  }
  if (isTable(lines, at, open)) return parseTable(lines, at, open);
  return parseParagraph(lines, at, open);
}

/** A heading may end in marks that only mirror its beginning. */
function headingText(text) {
  const bare = text.trim().replace(/(?<!#)#+$/, "");
  return bare === "" || /\s$/.test(bare) ? bare.trimEnd() : text.trim();
}

/** Whether a line begins a block even right below a paragraph. */
function interrupts(line) {
  const marker = MARKER.exec(line);
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || Boolean(marker?.[4]);
}

function parseCode(lines, at, open) {
  const [, fence, info] = /** @type {RegExpExecArray} */ (FENCE.exec(lines[at]));
  const indent = lines[at].search(/\S/);
  const language = /^[\w+#.-]{0,24}/.exec(info)?.[0] ?? "";
  const closing = new RegExp(`^ {0,3}\\${fence[0]}{${fence.length},}[ \\t]*$`);
  const content = [];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    if (closing.test(lines[end])) return [{ type: "code", language, lines: content, closed: true }, end + 1];
    const partial = open && end === lines.length - 1 && /^ *(`{1,}|~{1,})$/.test(lines[end]);
    if (!partial) content.push(lines[end].slice(Math.min(indent, lines[end].search(/\S|$/))));
  }
  return [{ type: "code", language, lines: content, closed: false }, end];
}

function parseQuote(lines, at, open, depth) {
  const inner = [];
  let end = at;
  for (; end < lines.length && QUOTE.test(lines[end]); end += 1) inner.push(lines[end].replace(QUOTE, ""));
  // A line that carries on the paragraph without its mark.
  while (end < lines.length && inner.at(-1)?.trim() && !isBlank(lines[end]) && !interrupts(lines[end])) inner.push(lines[end++]);
  return [{ type: "quote", blocks: parseBlocks(inner, open && end === lines.length, depth + 1) }, end];
}

function parseList(lines, at, open, depth) {
  const first = /** @type {RegExpExecArray} */ (MARKER.exec(lines[at]));
  const kind = first[2].at(-1);
  const ordered = first[2].length > 1;
  const items = [];
  let loose = false;
  let end = at;
  while (end < lines.length) {
    const marker = MARKER.exec(lines[end]);
    if (!marker || marker[2].at(-1) !== kind || marker[2].length > 1 !== ordered || RULE.test(lines[end])) break;
    const item = parseItem(lines, end, marker, open, depth);
    items.push(item);
    end = item.end;
    const gap = end > 0 && isBlank(lines[end - 1]);
    loose ||= item.blocks.length > 1 && item.gap;
    if (gap && end < lines.length && MARKER.exec(lines[end])?.[2].at(-1) === kind) loose = true;
  }
  const start = ordered ? Number.parseInt(first[2], 10) : 1;
  return [{ type: "list", ordered, start, tight: !loose, items }, end];
}

/** One item: its own line and whatever is indented below it, blank lines at its end included. */
function parseItem(lines, at, marker, open, depth) {
  const [, indent, bullet, space = " ", text = ""] = marker;
  const offset = indent.length + bullet.length + (space.length > 4 ? 1 : space.length);
  const inner = [text];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end].replace(/^\t+/, (tabs) => "    ".repeat(tabs.length));
    const depthOfLine = line.search(/\S|$/);
    // Models indent nested lists by two or three blanks whatever the marker's width.
    const nested = depthOfLine >= indent.length + 2 && (depthOfLine >= offset || MARKER.test(line));
    if (isBlank(line)) inner.push("");
    else if (nested) inner.push(line.slice(Math.min(depthOfLine, offset)));
    else if (isBlank(lines[end - 1]) || interrupts(line) || MARKER.test(line)) break;
    else inner.push(line.trimStart());
  }
  const task = /^\[([ xX])\][ \t]+/.exec(inner[0]);
  if (task) inner[0] = inner[0].slice(task[0].length);
  const blocks = parseBlocks(inner, open && end === lines.length, depth + 1);
  const gap = inner.slice(0, inner.findLastIndex((line) => line !== "") + 1).includes("");
  const source = lines.slice(at, end).join("\n");
  return { blocks, checked: task ? task[1] !== " " : null, gap, end, source };
}

/** A header row above a row of delimiters; while streaming, a first row that begins with a bar counts as one. */
function isTable(lines, at, open) {
  if (!lines[at].includes("|")) return false;
  const next = lines[at + 1];
  if (next === undefined) return open && /^ {0,3}\|/.test(lines[at]);
  if (open && at + 2 === lines.length && isUncertain(next)) return /^ {0,3}\|/.test(lines[at]);
  return DELIMITERS.test(next.trim()) && next.includes("-") && cells(next).length === cells(lines[at]).length;
}

function parseTable(lines, at, open) {
  const rows = [cells(lines[at])];
  const width = rows[0].length;
  const align = cells(lines[at + 1] ?? "").map((cell) => (cell.startsWith(":") ? (cell.endsWith(":") ? "center" : "") : cell.endsWith(":") ? "end" : ""));
  let end = Math.min(at + 2, lines.length);
  for (; end < lines.length && !isBlank(lines[end]) && !interrupts(lines[end]); end += 1) {
    if (open && end === lines.length - 1 && isUncertain(lines[end])) continue;
    const row = cells(lines[end]).slice(0, width);
    rows.push([...row, ...Array(width - row.length).fill("")]);
  }
  return [{ type: "table", align, rows }, end];
}

/** @param {string} line @returns {string[]} what stands between the bars; `\|` and bars inside code are text */
function cells(line) {
  const found = [""];
  for (const [piece] of line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").matchAll(/\\\||`[^`]*`|\||[^|`\\]+|./g)) {
    if (piece === "|") found.push("");
    else found[found.length - 1] += piece === "\\|" ? "|" : piece;
  }
  return found.map((cell) => cell.trim());
}

function parseParagraph(lines, at, open) {
  const text = [lines[at].trim()];
  let end = at + 1;
  for (; end < lines.length && !isBlank(lines[end]); end += 1) {
    const line = lines[end];
    if (open && end === lines.length - 1 && isUncertain(line)) continue;
    if (SETEXT.test(line)) return [{ type: "heading", level: line.includes("=") ? 1 : 2, text: text.join(" ") }, end + 1];
    if (interrupts(line) || isTable(lines, end, open)) break;
    text.push(line.trimStart());
  }
  return [{ type: "paragraph", text: text.join("\n").trimEnd() }, end];
}
