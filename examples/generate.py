"""Model, tokenizer and `generate`, one step at a time: `python examples/generate.py [MODEL]`."""

import argparse

import torch

from smollm3 import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM3-3B")
parser.add_argument("--max-new-tokens", type=int, default=512)
args = parser.parse_args()

model = AutoModelForCausalLM.from_pretrained(
    args.model, torch_dtype=torch.bfloat16, device_map="auto", attn_implementation="sdpa"
)
tokenizer = AutoTokenizer.from_pretrained(args.model)

prompt = "Give me a short introduction to large language models."
messages = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": prompt},
]
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
model_inputs = tokenizer([text], return_tensors="pt").to(model.device)

generated_ids = model.generate(
    model_inputs.input_ids,
    cache_implementation="static",
    max_new_tokens=args.max_new_tokens,
    do_sample=True,
    temperature=0.7,
    top_k=50,
    top_p=0.95,
)
generated_ids = [
    output_ids[len(input_ids) :]
    for input_ids, output_ids in zip(model_inputs.input_ids, generated_ids, strict=True)
]

response = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0]
print(response)
