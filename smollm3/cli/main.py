"""The `smollm3` command: reads what was typed, runs a subcommand, turns errors into a line and an exit code.

0 is success, 1 an error, 2 a wrong call, 130 Ctrl-C. Answers go to stdout, everything else to stderr. Nothing
heavy is imported before a subcommand needs it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from smollm3 import __version__
from smollm3.cli import options as o
from smollm3.cli.batch_command import batch
from smollm3.cli.bench_command import bench
from smollm3.cli.prompt_cache_command import prompt_cache as prompt_cache_command
from smollm3.cli.serve_command import serve
from smollm3.cli.settings import Settings
from smollm3.cli.terminal import one_line
from smollm3.errors import SmolLM3Error

PROGRAM = "smollm3"

app = typer.Typer(
    name=PROGRAM,
    help="SmolLM3 on your machine: chat with it, ask it from a script, serve it, see what it needs.",
    epilog="Options may be spelled with - or _: --max-new-tokens and --max_new_tokens are one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-"), "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors (at any place).")] = False,
) -> None:
    """Hold the options of the program itself; `main` has read --debug before."""


@app.command(context_settings={"max_content_width": 100})
def chat(
    context: typer.Context,
    model: o.ModelArgument = None,
    dtype: o.Dtype = "auto",
    attn_implementation: o.Attention = None,
    device: o.Device = "auto",
    quantize: o.Quantize = None,
    revision: o.Revision = None,
    local_files_only: o.Offline = False,
    template: o.Template = None,
    prompt_cache: o.PromptCaches = None,
    system: o.System = None,
    think: o.Think = None,
    hide_thinking: o.HideThinking = False,
    markdown: Annotated[bool, typer.Option("--markdown/--no-markdown", help="Render markdown.")] = True,
    load: Annotated[
        Path | None, typer.Option("--load", metavar="FILE", help="Go on with a chat that /save wrote.")
    ] = None,
    max_new_tokens: o.MaxNewTokens = None,
    do_sample: o.DoSample = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
) -> None:
    """Talk with a model. /help inside lists the commands; piped input is one message per line."""
    settings = Settings(
        max_new_tokens, do_sample, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, seed, tuple(stop or ()), think, not hide_thinking, markdown,
    )  # fmt: skip
    from smollm3.cli.chat import run_chat

    load_options = o.load_options(context, prompt_caches=tuple(prompt_cache or ()))
    raise typer.Exit(run_chat(load_options, settings, template=template, system=system, load_from=load))


@app.command(context_settings={"max_content_width": 100})
def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; what is piped in stands before it.")
    ] = None,
    model: o.ModelOption = None,
    dtype: o.Dtype = "auto",
    attn_implementation: o.Attention = None,
    device: o.Device = "auto",
    quantize: o.Quantize = None,
    revision: o.Revision = None,
    local_files_only: o.Offline = False,
    template: o.Template = None,
    prompt_cache: o.PromptCaches = None,
    system: o.System = None,
    think: o.Think = None,
    hide_thinking: o.HideThinking = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: text, reasoning, tool calls, usage, timings.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr how fast it was.")] = False,
    max_new_tokens: o.MaxNewTokens = None,
    do_sample: o.DoSample = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
) -> None:
    """Answer one prompt, from the argument, from a pipe, or from both."""
    settings = Settings(
        max_new_tokens, do_sample, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, seed, tuple(stop or ()), think, not hide_thinking,
    )  # fmt: skip
    from smollm3.cli.generate import run_generate

    load_options = o.load_options(context, prompt_caches=tuple(prompt_cache or ()))
    run_generate(
        prompt,
        load_options,
        settings,
        template=template,
        system=system,
        raw=raw,
        as_json=as_json,
        verbose=verbose,
    )


@app.command(context_settings={"max_content_width": 100})
def info(
    model: o.ModelArgument = None,
    revision: o.Revision = None,
    local_files_only: o.Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what this machine offers, or how big a model is before it is loaded."""
    from smollm3.cli.info import run_info

    run_info(model, revision=revision, local_files_only=local_files_only, as_json=as_json)


@app.command(context_settings={"max_content_width": 100})
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=o.MODEL_HELP.partition(" (default")[0] + ".")],
    to: Annotated[
        str, typer.Option("--to", metavar="int4|int6|int8|nf4", help="Number format of the layers' matrices.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Where to (default: the model's name and the format)."
        ),
    ] = None,
    group_size: Annotated[
        int, typer.Option("--group-size", metavar="32|64|128", help="Weights that share a scale.")
    ] = 64,
    with_minimum: Annotated[
        bool, typer.Option("--with-minimum", help="int4: store a minimum beside each scale; closer, larger.")
    ] = False,
    head: Annotated[
        str,
        typer.Option(
            "--head", metavar="int4|int6|int8|nf4|none", help="Format of the embedding and the language head."
        ),
    ] = "int8",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="nearest|gptq",
            help="gptq (int4): keep the layers' outputs on a text close; takes minutes to hours.",
        ),
    ] = "nearest",
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="FILE", help="The text for --method gptq.")
    ] = None,
    revision: o.Revision = None,
    local_files_only: o.Offline = False,
) -> None:
    """Write a model's weights in 4, 6 or 8 bits, in a folder that loads by memory map; runs on the CPU."""
    from smollm3.cli.quantize import run_quantize
    from smollm3.quantization.packed_config import PackedConfig

    config = PackedConfig(to, group_size, not with_minimum, None if head == "none" else head)
    run_quantize(
        model,
        config,
        output=output,
        method=method,
        calibration=calibration,
        revision=revision,
        local_files_only=local_files_only,
    )


@app.command(context_settings={"max_content_width": 100})
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=o.MODEL_HELP.partition(" (default")[0] + ".")],
    gguf: Annotated[Path, typer.Option("--gguf", metavar="FILE", help="The GGUF file to write.")],
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="bf16|q8_0|q4_0|f16|f32",
            help="Number format of the matrices; with q4_0, embedding and language head become q8_0.",
        ),
    ] = "bf16",
    revision: o.Revision = None,
    local_files_only: o.Offline = False,
) -> None:
    """Write a model as a GGUF file, which llama.cpp runs."""
    from smollm3.cli.export import run_export

    run_export(model, gguf, kind, revision=revision, local_files_only=local_files_only)


app.command(context_settings={"max_content_width": 100})(batch)
app.command("prompt-cache", context_settings={"max_content_width": 100})(prompt_cache_command)
app.command(context_settings={"max_content_width": 100})(serve)
app.command(context_settings={"max_content_width": 100})(bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, debug = _take_debug(words)
    for stream in (sys.stdout, sys.stderr):
        _never_fail_on_characters(stream)
    try:
        code = app(words, prog_name=PROGRAM, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        return _leave_broken_pipe()
    except SmolLM3Error as error:
        if debug:
            raise
        return _fail(str(error))
    except Exception as error:
        if hasattr(error, "show") and hasattr(
            error, "exit_code"
        ):  # a wrong call, of typer's own click or click's
            error.show()
            return int(error.exit_code)
        if debug:
            raise
        return _fail(f"{type(error).__name__}: {error} (unexpected: --debug shows where)")


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """Take --debug out of the options, wherever it stands before a `--`."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return kept + words[end:], len(kept) < end


def _fail(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return 1


def _never_fail_on_characters(stream: TextIO) -> None:
    """Write `?` for what the stream's encoding lacks, rather than end in a UnicodeEncodeError."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="replace")


def _leave_broken_pipe() -> int:
    """Nobody reads on: be quiet, also when Python flushes at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1
