"""The options of `smollm3 prompt-cache`, as typed: gathered and handed on. Imports nothing heavy."""

from pathlib import Path
from typing import Annotated

import typer

from smollm3.cli import options as o

Model = Annotated[str, typer.Argument(metavar="MODEL", help=o.MODEL_HELP.partition(" (default")[0] + ".")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
SystemFile = Annotated[
    Path | None, typer.Option("--system-file", metavar="FILE", help="A file with the system prompt.")
]
Messages = Annotated[
    Path | None,
    typer.Option("--messages", metavar="FILE", help="Messages that follow it: a JSON list, as in the API."),
]
Tools = Annotated[
    Path | None, typer.Option("--tools", metavar="FILE", help="Tools: a JSON list, as in the API.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Threads (default: as torch, one per core).")
]
KvBits = Annotated[
    int, typer.Option("--kv-bits", metavar="16|8", help="Bits of the KV cache, as serve will have them.")
]


def prompt_cache(
    context: typer.Context,
    model: Model,
    output: Output,
    system: o.System = None,
    system_file: SystemFile = None,
    messages: Messages = None,
    tools: Tools = None,
    think: o.Think = None,
    threads: Threads = None,
    kv_bits: KvBits = 16,
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    local_files_only: o.Offline = False,
) -> None:
    """Take in a long system prompt once and save its past, for serve, chat and generate."""
    from smollm3.cli.prompt_cache import run_prompt_cache

    run_prompt_cache(
        o.load_options(context, device="cpu"),
        output,
        system=system,
        system_file=system_file,
        messages=messages,
        tools=tools,
        think=think,
        threads=threads,
        kv_bits=kv_bits,
    )
