"""Tokenizers with tags in each form, random answers under a constraint, and an oracle for JSON schemas."""

import json
import random
import re
from collections.abc import Collection
from fractions import Fraction
from typing import Any

import numpy as np

from smollm3.text.detokenizer import Detokenizer
from smollm3.text.tokenizer import Tokenizer
from tests.token_corpus import SPECIAL, TAGS, train_backend

CLOSERS = [
    '"',
    '"}',
    '"}}',
    "}",
    "}}",
    "]",
    "]}",
    '":',
    '"]',
    "</think>",
    "</tool_call>",
    "0",
    "1",
    "null",
    "\n",
    ",",
    '{"',
]


def trained_tokenizer(*, special_tags: bool) -> Tokenizer:
    """A small tokenizer of SmolLM3's kind whose tags are added tokens, special or not."""
    backend = train_backend()
    if special_tags:
        backend.add_special_tokens(TAGS)
    return Tokenizer(backend, special_tokens={"eos_token": SPECIAL[-1]})


def allowed_ids(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def random_answer(
    constraint: Any,
    tokenizer: Tokenizer,
    eos_token_ids: Collection[int],
    rng: random.Random,
    *,
    max_ids: int = 300,
) -> str | None:
    """The text of an answer by chance, biased to end; None if it has not ended after max_ids."""
    closers = [tokenizer.token_to_id(text.replace("\n", "Ċ")) for text in CLOSERS]
    closers = [token_id for token_id in closers if token_id is not None]
    detokenizer, text = Detokenizer(tokenizer), ""
    end_of_thoughts = tokenizer.encode_plain("</think>")
    plan: list[int] = []
    for step in range(max_ids):
        if not plan and rng.random() < 0.05 and follow(constraint.fork(), end_of_thoughts):
            plan = list(end_of_thoughts)
        ids = allowed_ids(constraint.mask())
        assert len(ids), f"nothing may follow {text!r}"
        likely = [token_id for token_id in [*eos_token_ids, *closers] if token_id in ids]
        if plan:
            token_id = plan.pop(0)
        elif likely and rng.random() < (0.4 if step < max_ids // 2 else 0.95):
            token_id = rng.choice(likely)
        else:
            token_id = int(rng.choice(ids))
        constraint.accept(token_id)
        if token_id not in eos_token_ids:
            text += detokenizer.push(token_id)
        if constraint.ended:
            return text + detokenizer.finish()
    return None


def follow(constraint: Any, token_ids: Collection[int]) -> bool:
    """Whether a constraint allows the ids one by one, and then to end."""
    for token_id in token_ids:
        mask = constraint.mask()
        if not mask[token_id // 32] >> (token_id % 32) & 1:
            return False
        constraint.accept(token_id)
    return True


def valid(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether a value matches a schema; by the specification, for the keywords that are supported."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for token in schema["$ref"].split("/")[1:]:
            target = target[int(token)] if isinstance(target, list) else target[token]
        if not valid(value, target, root):
            return False
    types = schema.get("type", [])
    if types and not any(_is(value, name) for name in ([types] if isinstance(types, str) else types)):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if "enum" in schema and not any(_same(value, item) for item in schema["enum"]):
        return False
    choices = [
        all(valid(value, part, root) for part in schema.get("allOf", [])),
        "anyOf" not in schema or any(valid(value, part, root) for part in schema["anyOf"]),
        "oneOf" not in schema or sum(valid(value, part, root) for part in schema["oneOf"]) == 1,
    ]
    return all(choices) and _fits(value, schema, root)


def _fits(value: Any, schema: Any, root: Any) -> bool:
    if isinstance(value, str):
        long_enough = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        return long_enough and re.search(schema.get("pattern", ""), value) is not None
    if _is(value, "number"):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        in_range = (
            low <= value <= high and (above is None or value > above) and (below is None or value < below)
        )
        step = schema.get("multipleOf")
        return in_range and (step is None or Fraction(repr(value)) % Fraction(repr(step)) == 0)
    if isinstance(value, list):
        firsts = schema.get("prefixItems", [])
        parts = [firsts[idx] if idx < len(firsts) else schema.get("items", True) for idx in range(len(value))]
        enough = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return enough and all(valid(item, part, root) for item, part in zip(value, parts, strict=True))
    if isinstance(value, dict):
        enough = schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value))
        return enough and _properties_fit(value, schema, root)
    return True


def _properties_fit(value: dict[str, Any], schema: Any, root: Any) -> bool:
    if not set(schema.get("required", [])) <= value.keys():
        return False
    for name, item in value.items():
        parts = [schema["properties"][name]] if name in schema.get("properties", {}) else []
        patterns = schema.get("patternProperties", {}).items()
        parts += [part for pattern, part in patterns if re.search(pattern, name)]
        for part in parts or [schema.get("additionalProperties", True)]:
            if not valid(item, part, root):
                return False
    return True


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, float) and name == "integer":
        return value.is_integer()
    kinds = {"null": type(None), "string": str, "array": list, "object": dict, "integer": int}
    return isinstance(value, (int, float) if name == "number" else kinds.get(name, ()))


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True) or (
        not isinstance(one, bool) and not isinstance(other, bool) and one == other
    )
