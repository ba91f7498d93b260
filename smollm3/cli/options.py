"""The options that several commands share: declared once, and gathered.

In: what was typed. Out: LoadOptions (which model, how to load it). Imports neither torch nor rich, so that
--help is instant.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

_MODEL_PANEL, _ANSWER_PANEL, _SCREEN_PANEL = "Model", "Answer", "Screen"
MODEL_HELP = (
    "A model on the hub, a folder, a GGUF file, or a short name such as smollm2-135m "
    "(default: HuggingFaceTB/SmolLM3-3B)."
)

ModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP)]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        "--torch-dtype",
        metavar="auto|float32|bfloat16|float16",
        help="Number format of the weights; auto: the checkpoint's own.",
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attn-implementation",
        metavar="eager|sdpa|flash_attention_2|flex_attention",
        help="How attention is computed (default: sdpa); flash_attention_2 needs CUDA and flash-attn.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|mps|N",
        help="Where the model runs: N is the CUDA device of that number.",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize", metavar="nf4|fp4|int8", help="Load in 4 or 8 bits (needs the bitsandbytes extra)."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="NAME", help="Branch, tag or commit of a model on the hub."),
]
Offline = Annotated[
    bool, typer.Option("--local-files-only", help="Use what is on this machine; never reach for the hub.")
]
PromptCaches = Annotated[
    list[Path] | None,
    typer.Option("--prompt-cache", metavar="FILE", help="A file of smollm3 prompt-cache; may be repeated."),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="fixed|FILE",
        help="Chat template in place of the checkpoint's: fixed (SmolLM3's, mended) or a jinja file.",
    ),
]
System = Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt.")]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        help="Think before the answer, or answer at once (models with a thinking mode).",
        show_default=False,
    ),
]
HideThinking = Annotated[
    bool, typer.Option("--hide-thinking", help="Fold the thoughts away instead of showing them dimmed.")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        help="Longest answer in tokens (default: 4096, or less where the context ends).",
    ),
]
DoSample = Annotated[
    bool | None,
    typer.Option(
        "--do-sample/--greedy",
        help="Draw tokens by chance, or take the likeliest (default: as the checkpoint says; "
        "giving --temperature, --top-k, --top-p or --min-p draws).",
        show_default=False,
    ),
]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", metavar="X", help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="N", help="Draw from the N likeliest tokens.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", metavar="X", help="Draw from the likeliest tokens that share X.")
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", metavar="X", help="Drop tokens below X times the likeliest one's chance."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", metavar="X", help="Above 1: avoid tokens used before.")
]
PresencePenalty = Annotated[
    float | None,
    typer.Option("--presence-penalty", metavar="X", help="Subtracted once from tokens of the answer."),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option("--frequency-penalty", metavar="X", help="Subtracted for each use in the answer."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Makes drawn answers repeatable.")]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before TEXT; may be repeated."),
]


@dataclass(frozen=True)
class LoadOptions:
    """Which model to load, and how: as typed."""

    model: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    device: str = "auto"
    quantize: str | None = None
    revision: str | None = None
    local_files_only: bool = False
    prompt_caches: tuple[Path, ...] = ()


def load_options(context: typer.Context, **fixed: Any) -> LoadOptions:
    """Gather a command's options about loading by their names; `fixed` are those it has no option for."""
    names = {field.name for field in fields(LoadOptions)}
    typed = {name: value for name, value in context.params.items() if name in names}
    return LoadOptions(**typed, **fixed)
