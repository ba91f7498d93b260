"""`smollm3 bench`: one JSON object whose numbers belong together. How large they are is never asserted."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import write_gguf
from tiny_models import tiny_model

from smollm3 import SmolLM3ForCausalLM
from smollm3.cli.main import main

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
LAYERS, KV_VALUES = 4, 2 * 2 * 32  # keys and values x KV heads x head dim
PRODUCTS = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256  # of one layer
QUICK = ["--prompt", "16", "--new", "3", "--repeat", "2", "--batches", "1,2", "--batch-context", "8"]


@pytest.fixture(autouse=True)
def _small_buffer_and_own_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("smollm3.cli.bench_machine.READ_BYTES", 1 << 20)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in bfloat16, without a tokenizer."""
    path = tmp_path_factory.mktemp("bench") / "model"
    tiny_model(SmolLM3ForCausalLM, **SIZES).to(torch.bfloat16).save_pretrained(path)
    return path


def bench(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Run the command with --json and return its object, which is all of stdout."""
    code = main(["bench", str(folder), *QUICK, "--threads", "1", "--json", *words])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.count("\n") == 1
    record: dict[str, Any] = json.loads(out)
    return record


def test_the_json_has_what_was_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = bench(folder, capsys, "--contexts", "40,8,40")
    for name in (
        *("load_s", "first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_gb"),
        *("bytes_per_token", "bandwidth_share", "read_gb_per_s", "prefill_tflops"),
    ):
        assert record[name] > 0, name
    assert (record["model"], record["threads"]) == (str(folder), 1)
    assert (record["prompt"], record["new"], record["repeat"]) == (16, 3, 2)
    assert [entry["context"] for entry in record["contexts"]] == [8, 16, 40]
    assert [entry["batch"] for entry in record["batches"]] == [1, 2]
    assert record["batch_context"] == 8
    assert len(record["prefill_runs"]) == len(record["read_runs_gb_per_s"]) == 2
    assert [len(entry["runs"]) for entry in record["contexts"]] == [2, 4, 2]
    assert record["versions"]["torch"] == torch.__version__


def test_medians_shares_and_the_headline_follow_from_the_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bench(folder, capsys)
    short, long = record["contexts"]
    assert (short["context"], long["context"]) == (16, 64)
    for entry in (*record["contexts"], *record["batches"]):
        assert entry["tokens_per_s"] == pytest.approx(statistics.median(entry["runs"]), rel=1e-3)
    for name in ("decode_tokens_per_s", "bytes_per_token", "bandwidth_share"):
        assert record[name] == short[name.removeprefix("decode_")]
    shares = [
        rate * short["bytes_per_token"] / read / 1e9
        for rate, read in zip(short["runs"][2:], record["read_runs_gb_per_s"], strict=True)
    ]
    assert short["bandwidth_share"] == pytest.approx(statistics.median(shares), rel=0.02, abs=1e-4)
    share = long["tokens_per_s"] * long["bytes_per_token"] / record["read_gb_per_s"] / 1e9
    assert long["bandwidth_share"] == pytest.approx(share, rel=0.02, abs=1e-4)
    assert long["of_prompt_rate"] == pytest.approx(long["tokens_per_s"] / short["tokens_per_s"], rel=1e-3)
    tflops = 2 * LAYERS * PRODUCTS * record["prefill_tokens_per_s"] / 1e12
    assert record["prefill_tflops"] == pytest.approx(tflops, abs=1e-4)


FORMATS = {
    "native": ([], "native", "bfloat16", 2.0, 2.0, 16),
    "torch": (["--engine", "torch"], "torch", "bfloat16", 2.0, 2.0, 16),
    "torch float32": (["--dtype", "float32"], "torch", "float32", 4.0, 4.0, 32),
    "int4": (["--quantize", "int4"], "native", "int4 g64", 4.25 / 8, 8.25 / 8, 16),
    "int8": (["--quantize", "int8", "--isa", "portable"], "native", "int8 g64", 8.25 / 8, 8.25 / 8, 16),
    "nf4": (["--quantize", "nf4"], "native", "nf4 g64", 4.25 / 8, 8.25 / 8, 16),
    "page": (["--quantize", "bitsandbytes-nf4"], "native", "nf4 bitsandbytes", 4.25 / 8, 8.25 / 8, 16),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_engines_and_the_bytes_that_a_token_reads(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words, engine, scheme, body, head, kv_bits = FORMATS[name]
    record = bench(folder, capsys, *words)
    assert (record["engine"], record["scheme"], record["kv_bits"]) == (engine, scheme, kv_bits)
    assert (record["not_native_because"] is None) == (engine == "native")
    weights = LAYERS * PRODUCTS * body + 400 * 128 * head
    norms = LAYERS * 2 * 128 * kv_bits / 8 if engine == "torch" else 0  # counted where a report counts them
    assert record["weight_bytes_per_token"] == weights + norms
    cache = LAYERS * KV_VALUES * kv_bits / 8 * (16 + 2)  # 16 before, and 1, 2 and 3 of the new ones
    assert record["bytes_per_token"] == record["weight_bytes_per_token"] + cache
    kept = 400 * 128 * 2.0 if name == "page" else 0  # the embedding; what a token reads of it is its row
    assert record["weights_gb"] * 1e9 == pytest.approx(weights + kept, abs=2e5)


def test_the_blocks_of_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(SmolLM3ForCausalLM, **SIZES)
    path = write_gguf(tmp_path / "model.gguf", model.config, model.state_dict(), kind="Q8_0")
    assert bench(path, capsys)["scheme"] == "bfloat16"
    assert bench(path, capsys, "--quantize", "gguf")["scheme"] == "int8 g32"


def test_the_cache_in_int8_reads_less(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, half = bench(folder, capsys), bench(folder, capsys, "--kv-bits", "8")
    caches = [record["bytes_per_token"] - record["weight_bytes_per_token"] for record in (whole, half)]
    assert half["kv_bits"] == 8
    assert caches[0] / 2 < caches[1] < caches[0] * 0.6  # codes, and their scales


def test_what_runs_on_torch_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is float32" in bench(folder, capsys, "--dtype", "float32")["not_native_because"]
    assert bench(folder, capsys, "--engine", "torch")["not_native_because"] == "torch was asked for"


def test_lines_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(folder), *QUICK, "--threads", "1"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    heads = [line.split()[0] for line in out.splitlines()]
    assert heads == ["model", "load", *["prefill"], *["decode"] * 4, "memory", "prefill", "bandwidth"]
    assert "bfloat16, head bfloat16, cache of 16 bits; native" in out
    assert "2 x context 8" in out
    assert main([*words, "--json", "--engine", "torch"]) == 0
    assert "not native: torch was asked for" in capsys.readouterr().err


def test_too_little_memory_for_the_buffer_leaves_the_share_out(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3.cli.bench_machine.READ_BYTES", 1 << 60)
    record = bench(folder, capsys)
    assert record["bandwidth_share"] is None
    assert record["read_gb_per_s"] is None
    assert record["decode_tokens_per_s"] > 0
    assert main(["bench", str(folder), *QUICK]) == 0
    assert "not measured, too little memory is free" in capsys.readouterr().out


def test_one_id_at_a_time_is_enough(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = bench(
        folder, capsys, *["--prompt", "1", "--new", "1", "--repeat", "1", "--batches", "1"]
    )  # the later option counts
    assert record["contexts"][0]["context"] == 1
    assert len(record["batches"]) == 1


def test_a_default_context_that_does_not_fit_is_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bench(folder, capsys, "--prompt", "200")
    assert [entry["context"] for entry in record["contexts"]] == [200]


REFUSED = {
    "context": (["--contexts", "510"], "510 ids and 3 new ones are over the 512 of"),
    "prompt": (["--prompt", "600"], "give a smaller --prompt, --contexts, --batch-context or --new"),
    "batch context": (["--batch-context", "512"], "are over the 512"),
    "nothing": (["--prompt", "0"], "--prompt 0: give 1 or more"),
    "no threads": (["--threads", "0"], "--threads 0: give 1 or more"),
    "words": (["--contexts", "8,many"], "--contexts '8,many': give whole numbers from 1 on"),
    "empty": (["--batches", ""], "--batches '': give whole numbers from 1 on"),
    "negative": (["--batches=-1"], "--batches '-1'"),
    "engine": (["--engine", "cuda"], "--engine 'cuda': choose from auto, native, torch"),
    "isa": (["--isa", "neon"], "isa='neon' is not usable here: choose one of portable"),
    "kv bits": (["--kv-bits", "4"], "--kv-bits '4': choose from 16, 8"),
    "scheme": (["--quantize", "fp4"], "--quantize 'fp4': choose from int4"),
    "torch has no isa": (["--engine", "torch", "--isa", "avx2"], "are the native engine's"),
    "cannot": (["--dtype", "float32", "--engine", "native"], "the native engine cannot run this model"),
    "cannot in 8 bits": (
        ["--dtype", "float32", "--kv-bits", "8"],
        "need the native engine, which cannot run",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words, message = REFUSED[name]
    assert main(["bench", str(folder), *QUICK, "--json", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path / "nothing"), "--local-files-only"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
