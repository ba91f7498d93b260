"""`smollm3 export`: a model in, a GGUF file out that llama.cpp runs.

The file appears under its name when it is whole. Its path goes to stdout; its size, and what llama.cpp
will do otherwise than this package, go to stderr.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3.errors import CheckpointError, ParameterError

if TYPE_CHECKING:
    from smollm3.checkpoint.gguf_write import Encode
    from smollm3.checkpoint.source import Checkpoint


def run_export(model: str, gguf: Path, kind: str, *, revision: str | None, local_files_only: bool) -> None:
    """Write `model` to the file `gguf`, its matrices in `kind`: bf16, q8_0, q4_0, f16 or f32."""
    from smollm3.checkpoint.gguf_write import FILE_TYPES, write_gguf
    from smollm3.checkpoint.hub import resolve
    from smollm3.checkpoint.source import open_checkpoint
    from smollm3.model.load_arguments import read_config

    if kind not in FILE_TYPES:
        raise ParameterError(f"--type {kind}: give one of {', '.join(FILE_TYPES)}")
    if gguf.exists():
        raise ParameterError(f"{gguf} exists: remove it or give another file with --gguf")
    if not gguf.parent.is_dir():
        raise ParameterError(f"{gguf.parent} is no folder: make it or give another file with --gguf")
    path = resolve(model, revision=revision, local_files_only=local_files_only)
    with open_checkpoint(path) as checkpoint:
        if checkpoint.config.get("quantization_config") is not None:
            raise CheckpointError(f"{path} is quantised already: export the model that it was made from")
        config = read_config(None, checkpoint.config, {}, checkpoint.path).to_dict()
        tokenizer, notes = _tokenizer(checkpoint, config)
        encode, encode_notes = _encoder(kind)
        try:
            write_gguf(gguf, checkpoint, config, kind, name=_name(model), tokenizer=tokenizer, encode=encode)
        except CheckpointError as error:
            named = str(path) in str(error) or str(gguf) in str(error)
            raise error if named else CheckpointError(f"{path}: {error}") from None
    for note in notes + encode_notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{model} in {kind}: {gguf.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    print(gguf)


def _name(model: str) -> str:
    """The last part of a path or hub name, without the ending of a GGUF file."""
    return Path(model).resolve().name.removesuffix(".gguf") or "model"


def _tokenizer(checkpoint: "Checkpoint", config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the tokenizer's keys and what is to be said about them."""
    from smollm3.checkpoint import gguf_write_tokenizer as writer
    from smollm3.checkpoint.gguf import GGUFCheckpoint
    from smollm3.text.tokenizer import Tokenizer
    from smollm3.text.tokenizer_files import TOKENIZER_FILE

    ends = _ids((checkpoint.generation_config or {}).get("eos_token_id")) + _ids(config["eos_token_id"])
    if isinstance(checkpoint, GGUFCheckpoint):
        if copied := writer.copied_tokenizer(checkpoint.tokenizer_metadata):
            return copied, []
    elif (checkpoint.path / TOKENIZER_FILE).is_file():
        tokenizer = Tokenizer.from_folder(checkpoint.path)
        return writer.tokenizer_metadata(tokenizer, config["vocab_size"], ends)
    return writer.placeholder_metadata(config["vocab_size"], ends)


def _ids(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _encoder(kind: str) -> tuple["Encode", list[str]]:
    """Return what makes blocks of floats: the native quantiser, plain rounding where it is absent."""
    from smollm3.native.library import native_status

    if (status := native_status()).available:
        from smollm3.quantization.gguf_blocks import encode_blocks

        return encode_blocks, []
    from smollm3.checkpoint.gguf_write import encode_plainly

    rounded = kind in ("q4_0", "q8_0")
    return encode_plainly, [f"rounded plainly, the native quantiser is absent: {status.reason}"] * rounded
