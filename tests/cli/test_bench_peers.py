"""bench/peers.py with peers that are played: turns, medians, ratios, and what is left out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"

# Stands in for a Python: notes how it was called and answers with the next of the records it is given.
PLAYED = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__)
log = here.with_name("calls.json")
calls = json.loads(log.read_text()) if log.exists() else []
log.write_text(json.dumps([*calls, [here.name, *sys.argv[1:]]]))
records = json.loads(here.with_suffix(".json").read_text())
record = records[sum(call[0] == here.name for call in calls)]
if isinstance(record, str):
    print("Traceback: much text\\n\\n" + record, file=sys.stderr)
    sys.exit(1)
print("chatter of a library\\n" + json.dumps(record))
"""


def play(folder: Path, name: str, records: list[dict[str, Any] | str]) -> str:
    """Write a played Python that gives `records` one after the other."""
    path = folder / name
    path.write_text(PLAYED.format(python=sys.executable))
    path.chmod(0o755)
    path.with_suffix(".json").write_text(json.dumps(records))
    return str(path)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "peers.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def ours(decode: float) -> dict[str, Any]:
    """What `smollm3 bench --json` prints, as far as it is read."""
    return {
        "prefill_tokens_per_s": 300.0,
        "decode_tokens_per_s": decode,
        "load_s": 1.0,
        "peak_rss_gb": 2.0,
        "bandwidth_share": 0.8,
        "batches": [{"batch": 16, "tokens_per_s": 100.0}],
        "versions": {"smollm3": "1.2"},
        "commit": "abc",
    }


def theirs(decode: float, **more: float) -> dict[str, Any]:
    record = {"prefill_tokens_per_s": 100.0, "decode_tokens_per_s": decode, "load_s": 2.0}
    return {"version": "peer 3", "peak_rss_gb": None, **record, **more}


def test_turns_medians_and_ratios_of_each_round(tmp_path: Path) -> None:
    us = play(tmp_path, "us", [ours(10.0), ours(30.0), ours(12.0)])
    peer = play(tmp_path, "peer", [theirs(5.0, batch_tokens_per_s=40.0), theirs(30.0), theirs(4.0)])
    counts = ["--prompt", "64", "--new", "8", "--threads", "3", "--rounds", "3", "--batch-context", "9"]
    more = ["--smollm3-options", "--kv-bits 8"]
    pythons = ["--python", f"smollm3={us}", "--python", f"llama.cpp={peer}"]
    done = run("smollm3=a", "llama.cpp=b", *counts, *pythons, *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    record = json.loads(done.stdout)
    calls = json.loads((tmp_path / "calls.json").read_text())
    assert [call[0] for call in calls] == ["us", "peer", "peer", "us", "us", "peer"]
    given = "--prompt 64 --new 8 --threads 3 --repeat 1 --batch-context 9"
    bench = f"us -m smollm3 bench a {given} --contexts 64 --batches 16 --json --kv-bits 8"
    assert " ".join(calls[0]) == bench
    assert " ".join(calls[1]) == f"peer {BENCH / 'peer_engines.py'} llama.cpp b {given} --batch 16"
    first, second = record["measured"]["smollm3=a"], record["measured"]["llama.cpp=b"]
    assert first["decode_tokens_per_s"] == 12.0
    assert first["batch_tokens_per_s"] == 100.0
    assert (first["version"], first["bandwidth_share"]) == ("smollm3 1.2 at abc", 0.8)
    assert (second["decode_tokens_per_s"], second["peak_rss_gb"]) == (5.0, None)
    assert record["times_as_fast"] == {
        "of": "smollm3=a",
        "than": {
            "llama.cpp=b": {
                "prefill_tokens_per_s": 3.0,
                "decode_tokens_per_s": 2.0,  # of 2, 1 and 3; the medians alone would give 2.4
                "batch_tokens_per_s": 2.5,
            }
        },
    }
    assert record["left_out"] == {}
    assert record["command"].startswith("python bench/peers.py smollm3=a llama.cpp=b --prompt 64")


def test_what_fails_or_is_not_installed_is_left_out_and_said(tmp_path: Path) -> None:
    us = play(tmp_path, "us", [ours(10.0)] * 2)
    peer = play(tmp_path, "peer", [theirs(5.0), "OSError: no such file"])
    words = ["--python", f"smollm3={us}", "--python", f"llama.cpp={peer}", "--rounds", "2"]
    missing = ["--python", f"transformers={tmp_path / 'none'}"]
    done = run("smollm3=a", "llama.cpp=b", "openvino=c", "transformers=d", *words, *missing)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert list(record["measured"]) == ["smollm3=a"]
    assert record["left_out"]["llama.cpp=b"] == "OSError: no such file"
    assert record["left_out"]["openvino=c"] == f"openvino is not installed for {sys.executable}"
    assert "cannot be run" in record["left_out"]["transformers=d"]
    assert "left out   openvino=c" in done.stderr


def test_without_its_first_entry_there_is_nothing_to_compare(tmp_path: Path) -> None:
    us = play(tmp_path, "us", ["error: no such model"])
    done = run("smollm3=a", "--python", f"smollm3={us}", "--rounds", "1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "smollm3=a cannot be compared: error: no such model"


@pytest.mark.parametrize("words", [["ollama=x"], ["smollm3"], ["smollm3=a", "--python", "x=y"]])
def test_unknown_entries_are_wrong_calls(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "KIND one of smollm3" in done.stderr


def test_llama_cpp_runs_the_small_model(small_model: Path) -> None:
    words = ["--prompt", "8", "--new", "2", "--threads", "1", "--batch", "2", "--batch-context", "8"]
    command = [sys.executable, str(BENCH / "peer_engines.py"), "llama.cpp", str(small_model), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    record = json.loads(done.stdout.splitlines()[-1])
    assert record.pop("version").startswith("xllamacpp 20")
    assert set(record) == {
        *("load_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_gb", "batch_tokens_per_s")
    }
    assert all(value > 0 for value in record.values())
