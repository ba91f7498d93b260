"""Text as it comes, with its speed, until a stop string: `python examples/streaming.py [MODEL]`.

`stream` is an iterator: leaving the loop cancels what is left. A streamer is the other way round: it is
called.
"""

import argparse

from smollm3 import TextStreamer, pipeline

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM3-3B")
parser.add_argument("--max-new-tokens", type=int, default=128)
args = parser.parse_args()

pipe = pipeline("text-generation", model=args.model, max_new_tokens=args.max_new_tokens, do_sample=False)

chunk = None
for chunk in pipe.stream("The three primary colours are", stop_strings=["\n", "."]):
    print(chunk.text, end="", flush=True)
if chunk is not None and chunk.tokens_per_second:
    print(f"\n[{chunk.num_generated} tokens, {chunk.tokens_per_second:.1f} tok/s, {chunk.finish_reason}]")

messages = [{"role": "user", "content": "Name three colours."}]
pipe(messages, streamer=TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True))
