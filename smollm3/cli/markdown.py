"""Markdown as it streams: text in by pieces, lines rendered for the terminal out.

Finished blocks are printed once; only the last one is drawn again as it grows. What the terminal shows at the
end is each block rendered from its whole text, however the pieces were cut. Nothing of the text may vanish:
HTML, images and link definitions are shown as they are written.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import TextIO

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from rich.cells import cell_len
from rich.console import COLOR_SYSTEMS, Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text

from smollm3.cli.terminal import LiveRegion, escape_controls, terminal_size

_FRAME_SECONDS = 1 / 25
_MAX_LEVEL = 20  # of blocks within blocks; what is nested deeper is shown as it was written
_MATH_BRACKETS = {"\\(", "\\)", "\\[", "\\]"}


def _keep_math_brackets(state: StateCore) -> None:
    """Keep the backslash of \\( and \\[: there they are brackets of a formula, not escapes."""
    for token in state.tokens:
        for child in token.children or ():
            if child.type == "text_special" and child.markup in _MATH_BRACKETS:
                child.content = child.markup


def _new_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 5 * _MAX_LEVEL}).enable(
        ["strikethrough", "table"]
    )
    parser.disable(["reference", "image", "html_block", "html_inline"])
    parser.core.ruler.before("text_join", "keep_math_brackets", _keep_math_brackets)
    return parser


_PARSER = _new_parser()


class _LeftHeading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        text.stylize(Style(bold=True, underline=self.tag == "h1"))
        yield text


class _PlainCodeBlock(CodeBlock):
    """Highlighted code on the terminal's own background, so that it copies without padding."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(
            str(self.text).rstrip("\n"),
            self.lexer_name,
            theme="ansi_dark",
            background_color="default",
            word_wrap=True,
        )


class _AnswerMarkdown(Markdown):
    elements = {
        **Markdown.elements,
        "heading_open": _LeftHeading,
        "fence": _PlainCodeBlock,
        "code_block": _PlainCodeBlock,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = text
        self.parsed = _PARSER.parse(text)


def split_finished(text: str) -> tuple[list[str], str]:
    """Split `text` into top-level blocks that no further text can change, and the rest.

    Only whole lines decide: `#` at the end of the text may become `# Title` or `#tag`.
    """
    whole = text[: text.rfind("\n") + 1]
    starts = [token.map[0] for token in _PARSER.parse(whole) if token.level == 0 and token.map]
    if len(starts) < 2:
        return [], text
    lines = text.split("\n")
    starts[0] = 0
    blocks = ["\n".join(lines[start:end]) for start, end in pairwise(starts) if end > start]
    return blocks, "\n".join(lines[starts[-1] :])


def render_markdown(text: str, console: Console) -> list[str]:
    """Render one or more blocks to terminal lines of the console's width, without blank ones at the edges."""
    markdown = _AnswerMarkdown(text)
    if max((token.level for token in markdown.parsed), default=0) > _MAX_LEVEL:
        return render(Text(text), console)
    return render(markdown, console)


def render_dim(text: str, console: Console) -> list[str]:
    """Render plain text dimmed, wrapped to the console's width."""
    return render(Text(text, style="dim"), console)


def render(renderable: RenderableType, console: Console) -> list[str]:
    """Render to lines with style codes; trailing spaces and blank lines at the edges are cut off."""
    lines = []
    for segments in console.render_lines(renderable, pad=False):
        lines.append(_ansi(segments, console))
    while lines and not lines[-1].strip():
        lines.pop()
    while lines and not lines[0].strip():
        lines.pop(0)
    return lines


def _ansi(segments: list[Segment], console: Console) -> str:
    kept = [segment for segment in segments if not segment.control]
    while kept and not kept[-1].text.strip() and not (kept[-1].style and kept[-1].style.underline):
        kept.pop()
    if kept and not (kept[-1].style and kept[-1].style.underline):
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
    if console.no_color:
        kept = list(Segment.remove_color(kept))
    system = COLOR_SYSTEMS.get(console.color_system or "")
    return "".join(
        segment.style.render(segment.text, color_system=system) if segment.style and system else segment.text
        for segment in kept
    )


class StreamedText:
    """One stretch of an answer on the terminal: `push` pieces, then `finish`.

    Finished blocks are committed to the scrollback, the rest is live; between markdown blocks is a gap.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        markdown: bool = True,
        dim: bool = False,
        size: Callable[[], tuple[int, int]] = terminal_size,
        clock: Callable[[], float] = time.monotonic,
        color: bool = True,
    ) -> None:
        self._size = size
        self._clock = clock
        self._console = Console(
            file=stream,
            force_terminal=True,
            color_system="auto" if color else None,
            highlight=False,
            markup=False,
        )
        self._region = LiveRegion(stream, size, cell_len)
        self._split = split_finished if markdown else split_lines
        self._render = render_dim if dim else render_markdown if markdown else render_plain
        self._gap = 1 if markdown else 0
        self._num_blank = 0
        self._text = ""
        self._began = False
        self._next_frame = 0.0

    def push(self, piece: str) -> None:
        """Add a piece of the text; draws at most 25 times a second, less often when drawing is slow."""
        self._text += escape_controls(piece)
        now = self._clock()
        if now < self._next_frame:
            return
        self._draw()
        self._next_frame = self._clock() + max(_FRAME_SECONDS, 4 * (self._clock() - now))

    def finish(self) -> None:
        """Draw what is left, for good; the cursor stands at the beginning of the line below."""
        self._draw()
        self._commit(self._text)
        self._region.commit([])
        self._text = ""

    def _draw(self) -> None:
        self._console.width = self._size()[0]
        finished, self._text = self._split(self._text)
        for block in finished:
            self._commit(block)
        self._region.show(self._spaced(self._render(self._text, self._console)))

    def _commit(self, block: str) -> None:
        lines = self._render(block, self._console)
        if lines:
            self._region.commit(self._spaced(lines))
            self._num_blank = self._gap
            self._began = True
        elif not self._gap:
            self._num_blank += 1  # a blank line of plain text: shown once something follows it

    def _spaced(self, lines: list[str]) -> list[str]:
        return [*[""] * self._num_blank, *lines] if lines and self._began else lines


def split_lines(text: str) -> tuple[list[str], str]:
    """Split `text` into whole lines and the unfinished rest."""
    *lines, rest = text.split("\n")
    return lines, rest


def render_plain(text: str, console: Console) -> list[str]:
    """Render text as it is, wrapped to the console's width."""
    return render(Text(text), console)
