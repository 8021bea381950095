"""Evaluations killed with SIGKILL while they measure, while they write and at their end leave the unbroken record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_evaluations_end_with_the_record_of_unbroken_ones(tmp_path: Path, generated_images: Path) -> None:
    harness, root = Path(__file__).with_name("kills.py"), tmp_path / "runs"
    root.mkdir()
    done = subprocess.run(
        [sys.executable, str(harness), str(root), str(generated_images)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    chains = [json.loads(line) for line in done.stdout.splitlines()]
    for chain in chains:
        assert chain["kills"] and not chain["problems"], chain
    assert [chain["family"] for chain in chains] == ["reconstruction"] * 4 + ["generation"] * 4
    for family in ("reconstruction", "generation"):
        names = {entry["name"].partition("@")[0] for entry in json.loads((root / f"{family}.json").read_text())}
        assert {"fd", "kd", "score", "precision", "recall", "density", "coverage"} < names
        assert ({"psnr", "ssim", "mse"} < names) == (family == "reconstruction")
