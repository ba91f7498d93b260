"""What `smollm3 bench` is asked to measure: checked, and fitted to the model before any weight is read.

In: what was typed. Out: BenchOptions, the model's path, the contexts. Imports no torch before `check`.
"""

from dataclasses import dataclass
from pathlib import Path

from smollm3.errors import ParameterError

ENGINES = ("auto", "native", "torch")
SCHEMES = ("int4", "int8", "nf4", "bitsandbytes-nf4", "gguf")


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, and how the model is to run."""

    model: str
    prompt: int = 512
    num_new: int = 32
    contexts: tuple[int, ...] = ()  # empty: the prompt, and four times it where that fits
    batches: tuple[int, ...] = (1, 4, 16)
    batch_context: int = 128
    repeat: int = 3
    threads: int | None = None
    engine: str = "auto"
    isa: str | None = None
    kv_bits: int = 16
    quantize: str | None = None
    dtype: str = "auto"
    revision: str | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        for name, value in (
            *(("--prompt", self.prompt), ("--new", self.num_new), ("--repeat", self.repeat)),
            *(("--batch-context", self.batch_context), ("--threads", self.threads)),
        ):
            if value is not None and value < 1:
                raise ParameterError(f"{name} {value}: give 1 or more")
        for name, choice, choices in (
            ("--engine", self.engine, ENGINES),
            ("--quantize", self.quantize or SCHEMES[0], SCHEMES),
            ("--kv-bits", str(self.kv_bits), ("16", "8")),
        ):
            if choice not in choices:
                raise ParameterError(f"{name} {choice!r}: choose from {', '.join(choices)}")
        if self.engine == "torch" and (self.isa is not None or self.kv_bits != 16):
            raise ParameterError(
                "--isa and --kv-bits 8 are the native engine's: drop them, or --engine torch"
            )


def parse_counts(name: str, text: str | None) -> tuple[int, ...]:
    """Read `512,2048` as ascending numbers, each once; nothing is none."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ParameterError(f"{name} {text!r}: give whole numbers from 1 on, with commas between them")
    return tuple(sorted({int(part) for part in parts}))


def check(options: BenchOptions) -> tuple[Path, tuple[int, ...]]:
    """Return the model's path and the contexts, once everything fits the model; reads no weights."""
    from smollm3.checkpoint.hub import resolve
    from smollm3.checkpoint.source import open_checkpoint
    from smollm3.model.load_arguments import read_config

    path = resolve(options.model, revision=options.revision, local_files_only=options.local_files_only)
    with open_checkpoint(path) as checkpoint:
        room = read_config(None, checkpoint.config, {}, checkpoint.path).max_position_embeddings
    contexts = options.contexts
    if not contexts:
        contexts = tuple(c for c in (options.prompt, 4 * options.prompt) if c + options.num_new <= room)
    contexts = tuple(sorted({options.prompt, *contexts}))
    longest = max(*contexts, options.batch_context)
    if longest + options.num_new > room:
        raise ParameterError(
            f"{longest} ids and {options.num_new} new ones are over the {room} of {options.model}'s context: "
            "give a smaller --prompt, --contexts, --batch-context or --new"
        )
    return path, contexts
