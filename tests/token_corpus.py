"""Texts that tokenizers get wrong, and a small tokenizer of SmolLM3's kind, trained on the spot."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"

TORTURE = {
    "empty": "",
    "plain": "The quick brown fox jumps over the lazy dog.",
    "digits": "3.14159 12345678901234567890 1,234,567 0x7fff 2024-11-23 ½ ² Ⅷ ٣٤٥ १२३",
    "spaces before digits": "a  2  34   567\t8\n9    10",
    "contractions": "I'm you're we've she'll he'd it's can't I'M YOU'RE WE'VE 'twas 'S 's",
    "emoji": f"{FAMILY} \U0001f1e9\U0001f1f0\U0001f1fa\U0001f1f8 \u2764\ufe0f \U0001f44d\U0001f3fd🧑‍🚀",
    "cjk": "我们在北京。東京タワー、カタカナ 한국어 조선말 ㄱㄴㄷ",
    "arabic": "السلام عليكم ورحمة الله ١٢٣ مَرْحَبًا",
    "hebrew and hindi": "שָׁלוֹם עולם नमस्ते दुनिया ไทยภาษา",
    "combining": "e\u0301 n\u0303 a\u0308\u0332 \u0301lone Z\u0351\u036b\u0343a\u0363l\u0348g\u034d ﬁ ﷺ",
    "code": "def f(x: int):\n\treturn f\"{x!r:>10}\"  # ok\n\n\nif __name__ == '__main__':\n    f(10 ** 2)\n",
    "runs of spaces": "a b  c   d    e     f                                x \u00a0\u2003\u3000end   ",
    "runs of newlines": "a\n\n\nb\n \n  \n\n\nc\n\n\n\n\n\n",
    "tabs": "\t\ta\t \tb \t\n\t",
    "crlf": "line one\r\nline two\r\n\r\n  line three\rfour\n\r",
    "special tokens in text": "<|im_start|>user\nHi <|im_end|><|im_end|> <|endoftext|> < |im_start|> <|im_",
    "tags": "<think>\n\n</think>\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call><code>f</code>",
    "nul and controls": "a\x00b \x00\x00 \x01\x02\x1b[31mred\x1b[0m \x7f \x85 \u2028\u2029 \ufeff",
    "non-characters": "\ufffd \ufffe \uffff \U0010ffff \U000e0001 \ue000",
    "long word": "pneumono" * 60,
    "long punctuation": "=" * 77 + "!?" * 40 + "." * 33,
    "mixed scripts": "naïve café Straße Ωmega Жук x²+y²=z² 5µm 100€ ñandú İstanbul ǅ",
    "leading space": "  leading and trailing  ",
    "json": '{"a": [1, 2.50, -3e10], "b": null, "c": "\\u00e9\\n"}',
    "url": "https://example.org/a_b-c?d=e%20f&g=h#i @user #tag a@b.co",
    "one space": " ",
    "newline": "\n",
}  # fmt: skip

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<code>", "</code>"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "<|im_start|>assistant\n{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking|default(true) %}"
    "<think>\n\n</think>\n{% endif %}{% endif %}"
)


def train_backend(*, adds_bos: bool = False) -> Tokenizer:
    """A byte-level BPE with the Llama 3 regex, SmolLM3's special tokens at the end, its tags not special."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    corpus = [text for name, text in TORTURE.items() if name not in ("tags", "special tokens in text")]
    backend.train_from_iterator(corpus * 3, trainer)
    for token in [*SPECIAL, *TAGS]:
        backend.add_tokens([AddedToken(token, special=token in SPECIAL, normalized=False)])
    steps = [processors.ByteLevel(trim_offsets=True)]
    if adds_bos:
        bos = SPECIAL[0]
        steps.append(
            processors.TemplateProcessing(
                single=[f"{bos}:0", "$A:0"],
                pair=[f"{bos}:0", "$A:0", f"{bos}:1", "$B:1"],
                special_tokens=[(bos, backend.token_to_id(bos))],
            )
        )
    backend.post_processor = processors.Sequence(steps)
    return backend


def write_folder(folder: Path, *, adds_bos: bool = False, **config: Any) -> Path:
    """A tokenizer's folder as a checkpoint has it."""
    folder.mkdir(parents=True, exist_ok=True)
    train_backend(adds_bos=adds_bos).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "normalized": False, "special": True},
        "pad_token": "<|finetune_right_pad_id|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
