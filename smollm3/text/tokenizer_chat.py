"""The checkpoint's own chat template, as `apply_chat_template` uses it: which one, rendered how, what marked.

Exact, unlike `prompt.py`: nothing is turned into something the template would not drop.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding

from smollm3.errors import ParameterError, TemplateError
from smollm3.text.chat_template import reads_variable, render_with_spans
from smollm3.text.sandbox import Rendered
from smollm3.text.tokenizer import Tokenizer


def template_of(
    tokenizer: Tokenizer, chat_template: str | None, *, template: str | None = None, has_tools: bool = False
) -> str:
    """The template that `chat_template` (name or source) or `template` ("fixed") means, or the default."""
    if template is not None:
        if template != "fixed":
            raise ParameterError(
                f"template is {template!r}; pass 'fixed', or a name or source as chat_template"
            )
        if chat_template is not None:
            raise ParameterError("template and chat_template exclude each other: pass one of them")
        return template
    if chat_template is not None:
        return tokenizer.chat_templates.get(chat_template, chat_template)
    name = "tool_use" if has_tools and "tool_use" in tokenizer.chat_templates else "default"
    if name not in tokenizer.chat_templates:
        names = ", ".join(sorted(tokenizer.chat_templates))
        way_out = (
            f", only {names}; name one" if names else "; pass chat_template, or template='fixed' for SmolLM3"
        )
        raise TemplateError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has no default chat template{way_out}"
        )
    return tokenizer.chat_templates[name]


def split_conversations(conversation: Sequence[Any]) -> tuple[list[Any], bool]:
    """A list of conversations, and whether it was one already."""
    if isinstance(conversation, list | tuple) and conversation and isinstance(conversation[0], list | tuple):
        return list(conversation), True
    return [conversation], False


def render_conversations(
    tokenizer: Tokenizer, conversations: Sequence[Any], source: str, *, documents: Any = None, **options: Any
) -> list[Rendered]:
    """Render each conversation with the tokenizer's special tokens."""
    if documents is not None and not reads_variable(source, "documents"):
        raise ParameterError("documents do nothing: this chat template does not read them; use a message")
    special_tokens = tokenizer.special_tokens_map
    return [
        render_with_spans(source, messages, special_tokens=special_tokens, documents=documents, **options)
        for messages in conversations
    ]


def assistant_mask(row: Encoding, spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for the tokens of the characters in `spans`, 0 for the others and for padding."""
    mask = [0] * len(row.ids)
    for start, end in spans:
        first, last = row.char_to_token(start), row.char_to_token(end - 1)
        if first is None:  # cut off
            break
        stop = len(mask) if last is None else last + 1
        mask[first:stop] = [1] * (stop - first)
    return mask
