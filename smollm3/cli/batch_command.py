"""The options of `smollm3 batch`, as typed: gathered and handed on.

Imports nothing heavy, so that --help is instant.
"""

from pathlib import Path
from typing import Annotated

import typer

from smollm3.cli import options as o

Source = Annotated[
    Path, typer.Argument(metavar="IN", help="The requests: JSON lines in OpenAI's batch format.")
]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="The answers; what is there already stays.")]
Concurrency = Annotated[
    int, typer.Option("--concurrency", metavar="N", help="Requests that are in work together.")
]
RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="Ask again what OUT has an error for, such as a timeout.")
]
Name = Annotated[
    str | None,
    typer.Option(
        "--served-model-name", metavar="NAME", help="What requests call the model (default: as --model says)."
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Threads (default: as torch, one per core).")
]
KvBits = Annotated[
    int, typer.Option("--kv-bits", metavar="16|8", help="Bits of the native engine's KV cache.")
]
Engine = Annotated[
    str,
    typer.Option("--engine", metavar="auto|native|torch", help="auto: native where it can run the model."),
]


def batch(
    context: typer.Context,
    source: Source,
    target: Target,
    model: o.ModelOption = None,
    name: Name = None,
    concurrency: Concurrency = 32,
    retry_errors: RetryErrors = False,
    threads: Threads = None,
    engine: Engine = "auto",
    kv_bits: KvBits = 16,
    dtype: o.Dtype = "auto",
    attn_implementation: o.Attention = None,
    device: o.Device = "auto",
    quantize: o.Quantize = None,
    revision: o.Revision = None,
    local_files_only: o.Offline = False,
) -> None:
    """Answer a file of requests; a run that was stopped goes on where it ended."""
    from smollm3.cli.batch import run_batch

    code = run_batch(
        source,
        target,
        o.load_options(context),
        name=name,
        concurrency=concurrency,
        retry_errors=retry_errors,
        threads=threads,
        engine=engine,
        kv_bits=kv_bits,
    )
    raise typer.Exit(code)
