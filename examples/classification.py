"""Train a classification head in twenty lines and use it: `python examples/classification.py [MODEL]`."""

import argparse
import logging

import torch

from smollm3 import AutoModelForSequenceClassification, AutoTokenizer, pipeline

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM3-3B")
args = parser.parse_args()
logging.getLogger("smollm3").setLevel(logging.ERROR)  # that the head is new is the point here

TEXTS = [
    "I love this film, it is wonderful.",
    "What a terrible waste of time.",
    "A delightful evening with great music.",
    "The food was awful and the waiter rude.",
    "She was happy with the excellent service.",
    "I hated every boring minute of it.",
]
LABELS = torch.tensor([1, 0, 1, 0, 1, 0])

torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(
    args.model, dtype=torch.float32, device_map="auto", id2label={0: "negative", 1: "positive"}
)
tokenizer = AutoTokenizer.from_pretrained(args.model)
batch = tokenizer(TEXTS, padding=True, return_tensors="pt").to(model.device)
model.requires_grad_(False)
model.score.requires_grad_(True)
optimizer = torch.optim.AdamW(model.score.parameters(), lr=1e-3)
for step in range(10):
    loss = model(**batch, labels=LABELS.to(model.device)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")

classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
for text in (*TEXTS[:2], "A wonderful day with delightful friends."):
    print(text, classify(text)[0])
