"""Streamed text in, the text before the first stop string out: nothing shown too early or held too long.

An Aho-Corasick automaton over all stop strings: time is linear in the text, whatever strings and chunks.
"""

import re
from collections import deque
from collections.abc import Iterable

from smollm3.errors import ParameterError


class StopMatcher:
    """Ends a text where the first stop string is complete; of those that end there, the longest counts.

    `matched` is the stop string that was found, or None. The stop string itself is not part of the text.
    """

    def __init__(self, stop_strings: Iterable[str]) -> None:
        if isinstance(stop_strings, str):
            stop_strings = [stop_strings]
        self.stop_strings = tuple(dict.fromkeys(stop_strings))
        for stop in self.stop_strings:
            if not isinstance(stop, str) or not stop:
                raise ParameterError(
                    f"stop string {stop!r} is not text of at least one character: leave it out"
                )
        self.matched: str | None = None
        self._held = ""
        self._state = 0
        self._build()
        starts = "".join({re.escape(stop[0]) for stop in self.stop_strings})
        self._start = re.compile(f"[{starts}]" if starts else r"(?!)")

    def _build(self) -> None:
        """Make a state per prefix of a stop string, with a fallback to its longest proper suffix."""
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._stop: list[str | None] = [None]
        for stop in self.stop_strings:
            state = 0
            for char in stop:
                if char not in self._next[state]:
                    self._next[state][char] = len(self._next)
                    self._next.append({})
                    self._depth.append(self._depth[state] + 1)
                    self._stop.append(None)
                state = self._next[state][char]
            self._stop[state] = stop
        self._fallback = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self._next[state].items():
                self._fallback[child] = self._follow(self._fallback[state], char)
                self._stop[child] = self._stop[child] or self._stop[self._fallback[child]]
                queue.append(child)

    def _follow(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(char, 0)

    def push(self, text: str) -> str:
        """Take more text and give what is safe to show: all but an end that may become a stop string."""
        if self.matched is not None:
            return ""
        position = 0
        while position < len(text):
            if not self._state:
                start = self._start.search(text, position)
                if start is None:
                    break
                position = start.start()
            self._state = self._follow(self._state, text[position])
            position += 1
            stop = self._stop[self._state]
            if stop is not None:
                self.matched = stop
                shown = (self._held + text[:position])[: -len(stop)]
                self._held = ""
                return shown
        text = self._held + text
        num_held = self._depth[self._state]
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """Give what was held back, now that nothing follows it."""
        held, self._held, self._state = self._held, "", 0
        return held
