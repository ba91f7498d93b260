"""The options of `smollm3 serve`, as typed: gathered and handed on.

Imports nothing heavy, so that --help is instant.
"""

from pathlib import Path
from typing import Annotated

import typer

from smollm3.cli import options as o
from smollm3.errors import ParameterError

_SERVER, _CLIENTS, _LIMITS = "Server", "Clients", "Limits"

Host = Annotated[str, typer.Option("--host", metavar="NAME", help="Address; 0.0.0.0 is every network.")]
Port = Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")]
Name = Annotated[
    str | None,
    typer.Option(
        "--served-model-name", metavar="NAME", help="What clients call the model (default: as MODEL says)."
    ),
]
Engine = Annotated[
    str,
    typer.Option("--engine", metavar="auto|native|torch", help="auto: native where it can run the model."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", min=1, help="Threads of the native engine (default: a core each)."
    ),
]
KvBits = Annotated[
    int, typer.Option("--kv-bits", metavar="16|8", help="Bits of the native engine's KV cache.")
]
KvMemory = Annotated[
    str | None,
    typer.Option(
        "--kv-memory",
        metavar="SIZE",
        help="Memory of the native engine's KV cache, such as 2GB (default: half of what is free).",
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        "--max-model-len", metavar="N", help="Tokens of prompt and answer (default: the model's context)."
    ),
]
PromptLookup = Annotated[
    bool | None,
    typer.Option(
        "--prompt-lookup/--no-prompt-lookup",
        help="Guess tokens from the prompt; the answers stay the same (default: on with the native engine).",
        show_default=False,
    ),
]
Ui = Annotated[bool, typer.Option("--ui", help="Serve a page to chat on at /.")]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Let only clients with a key in; may be repeated (also: SMOLLM3_API_KEY).",
    ),
]
ApiKeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", metavar="FILE", help="Keys, one a line; # begins a comment.")
]
CachePerKey = Annotated[bool, typer.Option("--cache-per-key", help="Share no cached prompt between keys.")]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="A Host header to accept; may be repeated (default: on loopback its names, else all).",
    ),
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin", metavar="ORIGIN", help="Let pages of an origin use the server; may be repeated."
    ),
]
MaxConcurrent = Annotated[
    int, typer.Option("--max-concurrent", metavar="N", min=1, help="Requests at once; then 429.")
]
MaxBody = Annotated[
    int, typer.Option("--max-body-bytes", metavar="N", min=1, help="Size of a request; then 413.")
]
MaxHeader = Annotated[
    int, typer.Option("--max-header-bytes", metavar="N", min=1024, help="Size of its headers; then 431.")
]
MaxConnections = Annotated[
    int, typer.Option("--max-connections", metavar="N", min=1, help="Open connections; then 503.")
]
HeaderSeconds = Annotated[
    float, typer.Option("--header-seconds", metavar="X", help="Time for a request's headers; then 408.")
]
BodySeconds = Annotated[
    float, typer.Option("--body-seconds", metavar="X", help="Time for its body; then 408.")
]
WriteSeconds = Annotated[
    float, typer.Option("--write-seconds", metavar="X", help="Drop a reader that takes nothing for so long.")
]
DrainSeconds = Annotated[
    float,
    typer.Option("--drain-seconds", metavar="X", help="Time to finish requests after SIGTERM or Ctrl-C."),
]
LogFormat = Annotated[str, typer.Option("--log-format", metavar="json|text", help="Lines on stderr.")]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        metavar="N",
        min=1,
        help="Serve from N processes, each with the model, on Ray (needs the replicas extra).",
        show_default=False,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="Run the replicas on the hosts of a Ray cluster (default: on this machine).",
    ),
]
LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log.")]

_OF_CONNECTIONS = ("max_connections", "header_seconds", "body_seconds", "write_seconds")
_LIMIT_NAMES = ("max_body_bytes", "max_header_bytes", "drain_seconds", *_OF_CONNECTIONS)


def serve(
    context: typer.Context,
    model: o.ModelArgument = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    served_model_name: Name = None,
    ui: Ui = False,
    replicas: Replicas = None,
    ray_address: RayAddress = None,
    engine: Engine = "auto",
    threads: Threads = None,
    kv_bits: KvBits = 16,
    kv_memory: KvMemory = None,
    max_model_len: MaxModelLen = None,
    prompt_lookup: PromptLookup = None,
    prompt_cache: o.PromptCaches = None,
    dtype: o.Dtype = "auto",
    attn_implementation: o.Attention = None,
    device: o.Device = "auto",
    quantize: o.Quantize = None,
    revision: o.Revision = None,
    local_files_only: o.Offline = False,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    cache_per_key: CachePerKey = False,
    allowed_host: AllowedHost = None,
    cors_origin: CorsOrigin = None,
    max_concurrent: MaxConcurrent = 128,
    max_connections: MaxConnections = 1024,
    max_body_bytes: MaxBody = 2 * 1024 * 1024,
    max_header_bytes: MaxHeader = 32 * 1024,
    header_seconds: HeaderSeconds = 10.0,
    body_seconds: BodySeconds = 60.0,
    write_seconds: WriteSeconds = 30.0,
    drain_seconds: DrainSeconds = 30.0,
    log_format: LogFormat = "json",
    log_prompts: LogPrompts = False,
) -> None:
    """Serve a model to many users at once, with OpenAI's interface."""
    from smollm3.cli.serve import ServeOptions, run_serve

    if replicas is not None:
        _refuse_options_of_one_process(context)
    options = ServeOptions(
        host, port, served_model_name, engine, threads, kv_bits, kv_memory, max_model_len, prompt_lookup, ui,
        tuple(api_key or ()), api_key_file, cache_per_key, tuple(allowed_host or ()),
        tuple(cors_origin or ()), log_format, log_prompts, tuple(prompt_cache or ()),
        replicas, ray_address,
    )  # fmt: skip
    code = run_serve(
        o.load_options(context),
        options,
        max_requests=max_concurrent,
        **{name: context.params[name] for name in _LIMIT_NAMES},
    )
    raise typer.Exit(code)


def _refuse_options_of_one_process(context: typer.Context) -> None:
    """Refuse what a proxy of Ray's, which has the connections, would not follow."""
    for name in _OF_CONNECTIONS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise ParameterError(
                f"{option} does nothing with --replicas, where Ray's proxy has the connections: leave it out "
                "(a proxy before it can set such limits)"
            )
