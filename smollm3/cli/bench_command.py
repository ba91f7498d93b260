"""The options of `smollm3 bench`, as typed: gathered into BenchOptions and handed on.

Imports nothing heavy, so that --help is instant.
"""

from typing import Annotated

import typer

from smollm3.cli import options as o

Model = Annotated[str, typer.Argument(metavar="MODEL", help=o.MODEL_HELP.partition(" (default")[0] + ".")]
Prompt = Annotated[
    int, typer.Option("--prompt", metavar="N", help="Ids of the prompt, and the context of the headline.")
]
New = Annotated[int, typer.Option("--new", metavar="N", help="Ids decoded per repetition.")]
Contexts = Annotated[
    str | None,
    typer.Option(
        "--contexts",
        metavar="N,N",
        help="Decode at these contexts too (default: four times the prompt, where it fits the model).",
    ),
]
Batches = Annotated[str, typer.Option("--batches", metavar="N,N", help="Decode so many sequences together.")]
BatchContext = Annotated[int, typer.Option("--batch-context", metavar="N", help="Context of each of them.")]
Repeat = Annotated[
    int, typer.Option("--repeat", metavar="N", help="Repetitions, of which the median counts.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Threads (default: as torch, one per core).")
]
Engine = Annotated[
    str,
    typer.Option("--engine", metavar="auto|native|torch", help="auto: native where it can run the model."),
]
Isa = Annotated[
    str | None,
    typer.Option("--isa", metavar="NAME", help="Force an instruction set that `smollm3 info` lists."),
]
KvBits = Annotated[
    int, typer.Option("--kv-bits", metavar="16|8", help="Bits of the native engine's KV cache.")
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="int4|int6|int8|nf4|bitsandbytes-nf4|gguf",
        help="Pack the weights while loading; bitsandbytes-nf4: through that package; "
        "gguf: keep a GGUF file's blocks at any size.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; the lines go to stderr.")]


def bench(
    model: Model,
    prompt: Prompt = 512,
    new: New = 32,
    contexts: Contexts = None,
    batches: Batches = "1,4,16",
    batch_context: BatchContext = 128,
    repeat: Repeat = 3,
    threads: Threads = None,
    engine: Engine = "auto",
    isa: Isa = None,
    kv_bits: KvBits = 16,
    quantize: Quantize = None,
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    local_files_only: o.Offline = False,
    as_json: Json = False,
) -> None:
    """Measure how fast a model runs on this CPU: loading, prefill, decode, memory, share of the bandwidth."""
    from smollm3.cli.bench import run_bench
    from smollm3.cli.bench_options import BenchOptions, parse_counts

    options = BenchOptions(
        model, prompt, new, parse_counts("--contexts", contexts), parse_counts("--batches", batches),
        batch_context, repeat, threads, engine, isa, kv_bits, quantize, dtype, revision, local_files_only,
    )  # fmt: skip
    run_bench(options, as_json=as_json)
