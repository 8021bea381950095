"""Two processes under torchrun make exactly the record, images and noise of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COMMON = ["--batch-size", "32", "--quiet", "--metrics", "all"]
COMMANDS = {
    "generation": [
        *(
            "fashion-mnist-epsilon-llamagen",
            "fashion_mnist",
            "--num-samples",
            "160",
            "--keep",
            "2,8",
            "--guidance",
            "1.5",
        ),
        *("--steps", "3", "--decoder-steps", "2", "--classes", "random", *COMMON),
    ],
    "reconstruction": [
        *("fashion-mnist-semanticist", "fashion_mnist", "--num", "160", "--keep", "1,8", "--steps", "2", *COMMON),
    ],
}
# The command line, twice, and the final state of every random generator, as a file for each process (except for the
# classes, which every process samples for all images, and test images, which the last process reconstructs).
WORKER = """
import hashlib, json, os, sys
from tok1d.cli import app as cli
from tok1d.evaluate import generation, reconstruction
from tok1d.inference.sampling import noise_of

sources = []

def watched(*key):
    sources.append((key, noise_of(*key)))
    return sources[-1][1]

generation.noise_of = reconstruction.noise_of = watched
for words in json.loads(sys.argv[2]):
    if code := cli.run(words):
        sys.exit(code)
def state(source):
    return hashlib.sha256(source.get_state().numpy()).hexdigest()

left_out = ("classes", "test images")
noise = [[" ".join(map(str, key)), state(source)] for key, source in sources if key[1] not in left_out]
with open(f"{sys.argv[1]}/noise-{os.environ.get('RANK', 'alone')}.json", "w") as file:
    json.dump(noise, file)
"""


def run(start: list[str], root: Path, data: Path, out: Path) -> str:
    """Run both evaluations with the processes that `start` starts; returns what they printed."""
    out.mkdir()
    (root / "worker.py").write_text(WORKER)
    commands = []
    for kind, words in COMMANDS.items():
        given = ["--data-root", str(data), "--save-samples", str(out / f"{kind}.npz"), "--device", "cpu"]
        commands.append(["evaluate", kind, *words, *given, "--out", str(out / f"{kind}.json")])
    outer = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    env = {**outer, "OMP_NUM_THREADS": "1", "TOK1D_CACHE": str(root / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    command = [*start, str(root / "worker.py"), str(out), json.dumps(commands)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def noise(*files: Path) -> dict[str, list[str]]:
    """Final states of the random generators, in the order of their use, by (seed, purpose, number)."""
    found: dict[str, list[str]] = {}
    for file in files:
        for key, state in json.loads(file.read_text()):
            found.setdefault(key, []).append(state)
    return found


def content(out: Path, kind: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    with np.load(out / f"{kind}.npz") as file:
        return json.loads((out / f"{kind}.json").read_text()), file["arr_0"]


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_record_of_one(tmp_path: Path, generated_images: Path) -> None:
    alone, two = tmp_path / "alone", tmp_path / "two"
    run([sys.executable], tmp_path, generated_images, alone)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    printed = run(torchrun, tmp_path, generated_images, two)
    assert printed.count("the last part to finish writes") == 2  # one of the two processes, of either evaluation
    parts = [two / f"noise-{rank}.json" for rank in range(2)]
    of_one, of_two = noise(alone / "noise-alone.json"), noise(*parts)
    assert of_one == of_two and len(of_one) == 2 * 160  # tokens and pixels; those of either evaluation have one seed
    assert all(len(noise(part)) >= 2 * 64 for part in parts), "a process without a share"
    for kind in COMMANDS:
        (one, pixels), (other, others) = content(alone, kind), content(two, kind)
        assert one == other  # the same batches: equal to the last bit
        assert np.array_equal(pixels, others) and len(pixels) == 160
        assert {entry["num_images"] for entry in one} == {160} and any(entry["value"] for entry in one)
    assert not list(two.glob("*.parts")) and not list(two.glob(".*"))
