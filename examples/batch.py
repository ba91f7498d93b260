"""Many prompts through one model, several at a time: `python examples/batch.py [MODEL]`."""

import argparse

from smollm3 import pipeline

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM3-3B")
parser.add_argument("--max-new-tokens", type=int, default=32)
args = parser.parse_args()

pipe = pipeline("text-generation", model=args.model, device_map="auto", batch_size=4)

# Any iterator will do; results come as they are ready, in the order of the inputs. A seed belongs to its row:
# it gives the same text whatever else is in the batch.
countries = ["France", "Japan", "Kenya", "Peru", "Norway"]
prompts = (f"The capital of {country} is" for country in countries)
for results in pipe(prompts, max_new_tokens=args.max_new_tokens, temperature=0.7, seed=1):
    print(results[0]["generated_text"].splitlines()[0])

# Several answers to one prompt share the work on it.
for result in pipe("My favourite colour is", max_new_tokens=args.max_new_tokens, num_return_sequences=3):
    print(result["generated_text"].splitlines()[0])
