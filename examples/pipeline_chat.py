"""Answer a chat with a pipeline: `python examples/pipeline_chat.py [MODEL]`."""

import argparse

import torch

from smollm3 import pipeline

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM3-3B")
parser.add_argument("--max-new-tokens", type=int, default=256)
args = parser.parse_args()

pipe = pipeline(
    task="text-generation",
    model=args.model,
    torch_dtype=torch.bfloat16,
    device_map="auto",  # 0 asks for the first GPU, and says so where there is none
)

messages = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Tell me about yourself."},
]
outputs = pipe(
    messages, max_new_tokens=args.max_new_tokens, do_sample=True, temperature=0.7, top_k=50, top_p=0.95
)
print(outputs[0]["generated_text"][-1]["content"])
