"""Load in 4 bits, save, load again: `python examples/quantized.py [MODEL]`.

Needs `pip install smollm3[bitsandbytes]`.
"""

import argparse
import tempfile

import torch

from smollm3 import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, pipeline

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM3-3B")
parser.add_argument("--max-new-tokens", type=int, default=32)
args = parser.parse_args()

config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
)
model = AutoModelForCausalLM.from_pretrained(args.model, quantization_config=config, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(args.model)
stored = model.num_parameters() * 2
print(f"{model.get_memory_footprint() / 1e6:.0f} MB, less than {stored / 1e6:.0f} MB in bfloat16")

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pipe = pipeline("text-generation", model=folder)
print(
    pipe("The capital of France is", max_new_tokens=args.max_new_tokens, do_sample=False)[0]["generated_text"]
)
