"""The byte alphabet of byte-level BPE: 256 printable characters that stand for the 256 bytes."""

import json
from collections.abc import Collection

from tokenizers import Tokenizer


def _byte_alphabet() -> dict[str, int]:
    """Printable Latin-1 characters stand for themselves; the other bytes, in order, for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + k): byte for k, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_alphabet()


def bytes_of_token(token: str) -> bytes:
    """The bytes a token stands for: by the alphabet, or as UTF-8 where it leaves it (added tokens)."""
    try:
        return bytes(BYTE_OF_CHAR[char] for char in token)
    except KeyError:
        return token.encode("utf-8")


def without_tokens(backend: Tokenizer, tokens: Collection[str]) -> Tokenizer:
    """Copy a BPE tokenizer without some of its tokens and without the merges that make or use them."""
    state = json.loads(backend.to_str())
    model = state["model"]
    model["vocab"] = {token: token_id for token, token_id in model["vocab"].items() if token not in tokens}
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    model["merges"] = [
        [left, right] for left, right in pairs if not {left, right, left + right} & set(tokens)
    ]
    return Tokenizer.from_str(json.dumps(state))
