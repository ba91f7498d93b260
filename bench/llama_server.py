"""llama.cpp's own server from the package xllamacpp, for bench/serve.py: a GGUF file behind a port.

    python bench/llama_server.py MODEL.gguf --port 8080 --slots 16 --context 2048 --threads 2

`--context` is the room of each slot. Runs until it is killed: taking this server down can block for ever.
"""

import argparse
import threading

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    for name in ("port", "slots", "context", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames, params.port = ["127.0.0.1"], options.port
    params.n_parallel, params.n_ctx = options.slots, options.slots * options.context
    params.kv_unified = False
    params.n_batch, params.n_ubatch, params.warmup = 2048, 512, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
