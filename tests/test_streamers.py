"""Streamers: whole characters as they come, HF's protocol, another thread's iterator and its errors."""

import io
import threading
from typing import Any

import pytest
import torch

from smollm3.errors import ParameterError
from smollm3.streamers import TextIteratorStreamer, TextStreamer

TEXT = "<s>Paris ist schön, 日本語も👩‍🚀 fein.<e>"


class ByteTokenizer:
    """One id per byte; 256 and 257 are the special tokens <s> and <e>."""

    special_ids = frozenset({256, 257})

    def token_bytes(self, token_id: int) -> bytes:
        return {256: b"<s>", 257: b"<e>"}.get(token_id, bytes([token_id % 256]))

    def encode(self, text: str) -> list[int]:
        return [256, *text.removeprefix("<s>").removesuffix("<e>").encode(), 257]


def feed(streamer: TextStreamer, prompt: list[int], ids: list[int]) -> None:
    """Drive a streamer as generate does."""
    streamer.put(torch.tensor([prompt]))
    for token_id in ids:
        streamer.put(torch.tensor([token_id]))
    streamer.end()


class Pieces(TextStreamer):
    """Keeps the pieces apart."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pieces: list[tuple[str, bool]] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append((text, stream_end))


@pytest.mark.parametrize("skip_special_tokens", [False, True])
@pytest.mark.parametrize("skip_prompt", [False, True])
def test_text_is_written_once_whole_and_ends_with_a_newline(
    skip_prompt: bool, skip_special_tokens: bool
) -> None:
    file = io.StringIO()
    streamer = TextStreamer(ByteTokenizer(), skip_prompt, skip_special_tokens=skip_special_tokens, file=file)
    ids = ByteTokenizer().encode(TEXT)
    prompt = list(b"Q: ")
    expected = TEXT.removeprefix("<s>").removesuffix("<e>") if skip_special_tokens else TEXT
    for _ in range(2):
        feed(streamer, prompt, ids)
    assert file.getvalue() == (("" if skip_prompt else "Q: ") + expected + "\n") * 2


def test_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    feed(TextStreamer(ByteTokenizer(), skip_prompt=True), [65], list(b"hello"))
    assert capsys.readouterr().out == "hello\n"


def test_no_piece_splits_a_character_and_none_waits_longer_than_it_must() -> None:
    streamer = Pieces(ByteTokenizer(), skip_prompt=True)
    feed(streamer, [65], list("aé日👍b".encode()))
    assert streamer.pieces == [(char, False) for char in "aé日👍b"] + [("", True)]


def test_a_character_that_never_completes_is_said_at_the_end() -> None:
    streamer = Pieces(ByteTokenizer())
    feed(streamer, list(b"a"), list("日".encode()[:2]))
    assert streamer.pieces == [("a", False), ("\ufffd", True)]


def test_ids_may_be_lists_and_only_one_row_is_followed() -> None:
    streamer = Pieces(ByteTokenizer())
    streamer.put([[65, 66]])
    streamer.put([67])
    streamer.put(torch.tensor(68))
    assert "".join(text for text, _ in streamer.pieces) == "ABCD"
    with pytest.raises(ParameterError, match="2"):
        streamer.put(torch.tensor([[65], [66]]))


def test_another_thread_iterates_as_the_text_comes() -> None:
    streamer = TextIteratorStreamer(ByteTokenizer(), skip_prompt=True, timeout=20)
    gate = threading.Event()

    def generate() -> None:
        streamer.put(torch.tensor([[1, 2]]))
        for token_id in b"one ":
            streamer.put(torch.tensor([token_id]))
        assert gate.wait(20)
        for token_id in b"two":
            streamer.put(torch.tensor([token_id]))
        streamer.end()

    thread = threading.Thread(target=generate)
    thread.start()
    pieces = [next(streamer) for _ in range(4)]
    assert "".join(pieces) == "one ", "what is there is handed out before the rest exists"
    gate.set()
    assert "".join(streamer) == "two"
    thread.join()


def test_the_iterator_can_be_used_for_one_stream_after_another() -> None:
    streamer = TextIteratorStreamer(ByteTokenizer(), timeout=5)
    for text in ("first", "second"):
        feed(streamer, list(b"P"), list(text.encode()))
        assert "".join(streamer) == "P" + text


def test_waiting_ends_after_the_timeout() -> None:
    streamer = TextIteratorStreamer(ByteTokenizer(), timeout=0.05)
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        next(streamer)


def test_an_exception_of_the_generating_thread_is_raised_in_the_iterating_one() -> None:
    streamer = TextIteratorStreamer(ByteTokenizer(), timeout=5)
    streamer.put(torch.tensor([[65]]))
    streamer.fail(ValueError("out of memory"))
    assert next(streamer) == "A"
    with pytest.raises(ValueError, match="out of memory"):
        next(streamer)
    feed(streamer, [66], [67])
    assert "".join(streamer) == "BC", "it starts afresh"
