"""Quantise a GGUF file by llama.cpp's own quantiser, through the package llama-cpp-python.

    python bench/llama_quantize.py IN.gguf OUT.gguf Q4_K_M

For bench/perplexity.py, which reads what comes out. Takes Q4_0, Q8_0, Q4_K_M and Q6_K.
"""

import argparse
import ctypes
from pathlib import Path

import llama_cpp

FILE_TYPES = {
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("type", choices=FILE_TYPES)
    options = parser.parse_args()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[options.type]
    failed = llama_cpp.llama_model_quantize(
        str(options.source).encode(), str(options.target).encode(), ctypes.byref(params)
    )
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
