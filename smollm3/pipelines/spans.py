"""The best spans of a text, from start and end logits over windows of its tokens.

In: windows with logits, offsets and which tokens may answer. Out: spans of characters with probabilities.
Pure functions; they know no model and no tokenizer.
Shapes: T tokens of a window, A tokens of an answer at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Logits [T] of start and end, which tokens [T] belong to the context, and their characters there."""

    start_logits: Tensor
    end_logits: Tensor
    in_context: Tensor
    offsets: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of the context; start == end is "no answer"."""

    score: float
    start: int
    end: int


def best_spans(
    windows: Sequence[Window],
    max_answer_len: int,
    top_k: int,
    text: str,
    *,
    with_null: bool = False,
    align: bool = False,
) -> list[Span]:
    """Return the `top_k` likeliest spans, best first, each stretch of characters once.

    The score is p(start) * p(end), each a softmax over the context tokens of all windows. `with_null` adds
    the first token of each window, which stands for "no answer"; as all windows must agree on that, it counts
    with the least it got. Spans of `text` lose the blanks around them; `align` widens them to whole words.
    """
    starts = _probabilities([window.start_logits for window in windows], windows, with_null)
    ends = _probabilities([window.end_logits for window in windows], windows, with_null)
    found: dict[tuple[int, int], Span] = {}
    if with_null:
        null = min(float(p_start[0] * p_end[0]) for p_start, p_end in zip(starts, ends, strict=True))
        found[0, 0] = Span(null, 0, 0)
    for score, window, first, last in _candidates(windows, starts, ends, max_answer_len):
        better = [span for span in found.values() if span.score >= score]
        if len(better) >= top_k:
            break
        start, end = without_blanks(text, window.offsets[first][0], window.offsets[last][1])
        if align:
            start, end = align_to_words(text, start, end)
        found.setdefault((start, end), Span(score, start, end))
    return sorted(found.values(), key=lambda span: span.score, reverse=True)[:top_k]


def _candidates(
    windows: Sequence[Window], starts: Sequence[Tensor], ends: Sequence[Tensor], max_answer_len: int
) -> Iterator[tuple[float, Window, int, int]]:
    """Yield (score, window, first token, last token) of the spans inside the context, best first."""
    scores, places = [], []
    for idx, (p_start, p_end, window) in enumerate(zip(starts, ends, windows, strict=True)):
        A = min(max_answer_len, len(p_start))
        padded = torch.cat([p_end * window.in_context, p_end.new_zeros(A - 1)])
        joint = (p_start * window.in_context)[:, None] * padded.unfold(
            0, A, 1
        )  # [T, A]: a more tokens from i
        i, a = joint.nonzero(as_tuple=True)
        scores.append(joint[i, a])
        places.append(torch.stack([torch.full_like(i, idx), i, i + a], dim=1))
    flat, where = torch.cat(scores), torch.cat(places)
    for place in flat.argsort(descending=True, stable=True):
        idx, first, last = where[place].tolist()
        yield float(flat[place]), windows[idx], first, last


def _probabilities(logits: Sequence[Tensor], windows: Sequence[Window], with_null: bool) -> list[Tensor]:
    """Softmax in float64 over the tokens of all windows that may be chosen; 0 for the others."""
    masked = []
    for row, window in zip(logits, windows, strict=True):
        allowed = window.in_context.clone()
        allowed[0] |= with_null
        masked.append(row.double().masked_fill(~allowed, -torch.inf))
    return list(torch.split(torch.cat(masked).softmax(0), [len(row) for row in masked]))


def without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """Narrow [start, end): tokens of many vocabularies hold the blank before a word."""
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip())


def align_to_words(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen [start, end) so that it cuts no word: letters, digits and _ stay together."""
    while 0 < start < len(text) and _inside_word(text, start):
        start -= 1
    while 0 < end < len(text) and _inside_word(text, end):
        end += 1
    return start, end


def _inside_word(text: str, place: int) -> bool:
    before, after = text[place - 1], text[place]
    return (before.isalnum() or before == "_") and (after.isalnum() or after == "_")
