"""A tool call and back: the model asks, we run, the model answers: `python examples/tool_call.py [MODEL]`."""

import argparse
import json

from smollm3 import pipeline
from smollm3.text.parser import parse

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM3-3B")
parser.add_argument("--max-new-tokens", type=int, default=128)
args = parser.parse_args()

WEATHER = {"Copenhagen": "7 degrees, rain", "Lagos": "31 degrees, sun"}
TOOL = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
pipe = pipeline(
    "text-generation",
    model=args.model,
    do_sample=False,
    return_full_text=False,
    max_new_tokens=args.max_new_tokens,
)
options = {"tools": [TOOL], "template": "fixed", "enable_thinking": False}

# The answer is begun for the model, so that even a small one makes a call.
begun = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "'
messages = [{"role": "user", "content": "What is the weather in Lagos?"}]
prefilled = [*messages, {"role": "assistant", "content": begun}]
answer = begun + pipe(prefilled, stop_strings="</tool_call>", **options)[0]["generated_text"]

for call in parse(answer).tool_calls:
    city = json.loads(call.arguments).get("city", "")
    print(f"call:   {call.name}({city!r})")
    result = WEATHER.get(city, "unknown city")
    print(f"result: {result}")
    function = {"name": call.name, "arguments": call.arguments}
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": call.name, "content": result},
    ]
print("answer:", pipe(messages, **options)[0]["generated_text"])
