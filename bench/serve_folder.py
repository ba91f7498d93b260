"""Make a model folder servable: a tokenizer for a folder that has none, or a short name's model as a folder.

    python bench/serve_folder.py FOLDER              # writes SmolLM2's tokenizer into FOLDER
    python bench/serve_folder.py smollm2-135m FOLDER # writes the whole model, for vLLM

Random weights need no particular words, but every id of theirs needs some: the tokenizer of smollm2-135m is
filled up with names such as `<id50000>` to the size of the folder's vocabulary.
"""

import argparse
import json
import tempfile
from pathlib import Path

from smollm3 import AutoModelForCausalLM, AutoTokenizer

SMALL = "smollm2-135m"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="MODEL|FOLDER")
    names = parser.parse_args().names
    if len(names) == 1:
        fill(Path(names[0]))
    else:
        AutoModelForCausalLM.from_pretrained(names[0], dtype="bfloat16").save_pretrained(names[1])
        AutoTokenizer.from_pretrained(names[0]).save_pretrained(names[1])


def fill(folder: Path) -> None:
    """Write tokenizer files into a model's folder."""
    if (folder / "tokenizer.json").exists():
        raise SystemExit(f"{folder} has a tokenizer")
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    with tempfile.TemporaryDirectory() as place:
        AutoTokenizer.from_pretrained(SMALL).save_pretrained(place)
        for path in Path(place).iterdir():
            data = json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()
            if path.name == "tokenizer.json":
                vocabulary = data["model"]["vocab"]
                vocabulary |= {f"<id{token_id}>": token_id for token_id in range(len(vocabulary), size)}
            (folder / path.name).write_text(data if isinstance(data, str) else json.dumps(data))


if __name__ == "__main__":
    main()
