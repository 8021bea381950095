"""Two kills of every family; `make test-faults` makes twenty. Also trainings on a full disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_runs_end_with_the_bits_of_unbroken_ones(tmp_path: Path) -> None:
    harness, log = Path(__file__).with_name("harness.py"), tmp_path / "log.jsonl"
    done = subprocess.run(
        [sys.executable, str(harness), "--kills", "2", "--log", str(log)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills = [json.loads(line) for line in log.read_text().splitlines()]
    assert [kill["family"] for kill in kills] == ["tokenizer", "tokenizer", "gan", "gan", "generator", "generator"]
    for kill in kills:
        assert kill["same"] and not kill["problems"], kill
        assert kill["lost"] <= 2  # a checkpoint every two steps
