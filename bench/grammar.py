"""What grammars cost for one tokenizer: compiling, and the mask, accept and fork of each token of an answer.

    python bench/grammar.py smollm2-135m [--vocab-size N] [--rounds 20]

The first argument is anything `SmolLM3Tokenizer.from_pretrained` takes. Times are in microseconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from smollm3.text.grammar import Grammar, GrammarCompiler
from smollm3.tokenization import SmolLM3Tokenizer

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TEXTS = {
    "title": {"type": "string", "maxLength": 200},
    "tags": {"type": "array", "items": {"type": "string"}},
    "n": {"type": "number"},
    "deep": {},
}
TOOLS = [{"name": "get_weather", "parameters": WEATHER}, {"name": "now"}]
CALL = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris, the \\"capital\\" of France", '
    '"unit": "C", "days": 3}}\n</tool_call>'
)
JSON = (
    '{\n  "title": "A longer piece of text with words, commas and 12 numbers.",\n'
    '  "tags": ["a", "b", "c d e"],\n  "n": -12.5,\n  "deep": {"x": [1, 2, 3, {"y": null, "z": true}]}\n}'
)
THOUGHTS = "Okay, the user asks for the weather in Paris, for < 14 days.\nSo `days` = 3.\n</think>\n"
LARK = 'start: expr\nexpr: expr ("+"|"-") term | term\nterm: NUM | "(" expr ")"\nNUM: /[0-9]+/'
SCHEMA = {"type": "object", "properties": TEXTS, "required": list(TEXTS), "additionalProperties": False}
CASES: dict[str, tuple[Callable[[GrammarCompiler], Grammar], str]] = {
    "json_object": (lambda make: make.json_object(), JSON),
    "json_schema": (lambda make: make.json_schema(SCHEMA), JSON),
    "tool_calls, thoughts open": (lambda make: make.tool_calls(TOOLS, thinking="open"), THOUGHTS + CALL),
    "tool_calls, auto": (lambda make: make.tool_calls(TOOLS, "auto"), f"One moment please.\n{CALL}\n{CALL}"),
    "regex": (lambda make: make.regex(r"[A-Z][a-z]+( [A-Z][a-z]+)*, \d{4}"), "Ada Lovelace, 1815"),
    "lark": (lambda make: make.lark(LARK), "1+(23-4)+567"),
}


def microseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e6


def measure(make: Callable[[], Grammar], ids: list[int], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"first": [], "mask": [], "accept": [], "fork": []}
    for turn in range(rounds + 1):
        grammar = make()
        for token_id in ids:
            times["mask" if turn else "first"].append(microseconds(grammar.mask))
            times["fork"].append(microseconds(grammar.fork))
            times["accept"].append(microseconds(lambda idx=token_id, to=grammar: to.accept(idx)))  # type: ignore[misc]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer")
    parser.add_argument("--vocab-size", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    tokenizer = SmolLM3Tokenizer.from_pretrained(options.tokenizer)
    compiler = GrammarCompiler(tokenizer, options.vocab_size or len(tokenizer), [tokenizer.eos_token_id or 0])
    print(f"{len(tokenizer)} tokens; first grammar {microseconds(compiler.json_object) / 1e6:.2f} s")
    for name, (make, text) in CASES.items():
        compiling = microseconds(lambda make=make: make(compiler))  # type: ignore[misc]
        ids = tokenizer.encode(text, add_special_tokens=False)
        times = measure(lambda make=make: make(compiler), ids, options.rounds)  # type: ignore[misc]
        masks = sorted(times["mask"])
        figures = {
            "compile": compiling,
            "mask median": statistics.median(masks),
            "mean": statistics.mean(masks),
            "p95": masks[int(0.95 * len(masks))],
            "first answer mean": statistics.mean(times["first"]),
            "accept": statistics.median(times["accept"]),
            "fork": statistics.median(times["fork"]),
        }
        shown = "  ".join(f"{key} {value:.0f}" for key, value in figures.items())
        print(f"{name:26} {len(ids)} ids  {shown}")


if __name__ == "__main__":
    main()
