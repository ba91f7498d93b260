"""A chat that streams and remembers: `python examples/chat_loop.py [MODEL]`; end with Ctrl-D."""

import argparse
import sys
from typing import Any

from smollm3 import pipeline

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM3-3B")
parser.add_argument("--max-new-tokens", type=int, default=512)
args = parser.parse_args()

pipe = pipeline("text-generation", model=args.model, device_map="auto")
messages: list[dict[str, Any]] = []

print("you> ", end="", flush=True)
for line in sys.stdin:
    messages.append({"role": "user", "content": line.strip()})
    answer = ""
    for chunk in pipe.stream(messages, max_new_tokens=args.max_new_tokens, do_sample=False):
        answer += chunk.text
        print(chunk.text, end="", flush=True)
    messages.append({"role": "assistant", "content": answer})
    print("\nyou> ", end="", flush=True)
print()
