"""Teach a question answering head and find answers by place: `python examples/question_answering.py [MODEL]`.

The model's states are computed once and only the head is trained, which takes seconds; a head for real use is
trained on a real data set, such as SQuAD, with the whole model.
"""

import argparse
import logging

import torch

from smollm3 import AutoModelForQuestionAnswering, AutoTokenizer, pipeline

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM3-3B")
args = parser.parse_args()
logging.getLogger("smollm3").setLevel(logging.ERROR)  # that the head is new is the point here

EXAMPLES = [
    ("Where was Ada born?", "Ada was born in London in 1815.", "London"),
    ("When was Ada born?", "Ada was born in London in 1815.", "1815"),
    ("Where was Niels born?", "Niels was born in Copenhagen in 1885.", "Copenhagen"),
    ("When was Niels born?", "Niels was born in Copenhagen in 1885.", "1885"),
]

torch.manual_seed(0)
model = AutoModelForQuestionAnswering.from_pretrained(args.model, dtype=torch.float32, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(args.model)
questions, contexts, answers = zip(*EXAMPLES, strict=True)
batch = tokenizer(list(questions), list(contexts), padding=True, return_tensors="pt")
begins = [context.index(answer) for context, answer in zip(contexts, answers, strict=True)]
starts = [batch.char_to_token(row, begin, 1) for row, begin in enumerate(begins)]
ends = [batch.char_to_token(row, begin + len(answers[row]) - 1, 1) for row, begin in enumerate(begins)]
batch = batch.to(model.device)
targets = torch.tensor([starts, ends], device=model.device)
with torch.no_grad():
    states = model.transformer(**batch).last_hidden_state
optimizer = torch.optim.AdamW(model.qa_outputs.parameters(), lr=1e-2)
hidden = (batch.attention_mask == 0)[..., None]
for _ in range(60):
    logits = model.qa_outputs(states).masked_fill(hidden, -1e9)  # [rows, tokens, start and end]
    loss = sum(torch.nn.functional.cross_entropy(logits[..., i], targets[i]) for i in range(2)) / 2
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"loss {loss.item():.3f}")

ask = pipeline("question-answering", model=model, tokenizer=tokenizer)
for question, context, _ in EXAMPLES:
    print(question, ask(question=question, context=context))
# A context of any length is read in windows that overlap.
long_context = "Nothing happened that year. " * 20 + "Ada was born in London in 1815."
print(ask(question="Where was Ada born?", context=long_context, max_seq_len=96, doc_stride=32))
