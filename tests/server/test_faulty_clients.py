"""Two minutes of random faulty clients against a server process; bench/serve_faults.py runs for an hour."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "serve_faults.py"


@pytest.mark.timeout(900)
def test_two_minutes_of_faulty_clients_leave_nothing_behind() -> None:
    """No crash, no wrong answer to an honest client, no leak; see the script for what it checks."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = "--seconds 75 --checkpoint 18 --seed 7 --clients 5 --honest 1 --pool 16 --threads 1"
    done = subprocess.run(
        [sys.executable, SCRIPT, "smollm2-135m", *options.split(), "--wait", "200", "--rest", "60"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:] or done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] == 0
    assert found["faulty_clients"] > 50
    assert len(found["kinds"]) > 20
    assert found["honest_answers"] > 0
    assert found["checkpoints"] >= 1
    assert found["log"].keys() == {"info"}
