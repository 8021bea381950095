"""Kill small trainings with SIGKILL at random instants, run the same command again, compare the weights bit for bit.

    python tests/faults/harness.py --kills 20 --table docs/reliability.md

Every run is a separate process that calls the command line. It is forked from one that has imported the package, so a
kill interrupts the training and not the import of torch. Of every five kills, three come from outside, after a random
number of log lines and a random part of the time to the next; two interrupt the writing of a checkpoint at a random
byte or stage.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PRELOAD = [
    *(
        "torch._dynamo",
        "accelerate",
        "safetensors.torch",
        "tok1d.cli.app",
        "tok1d.demo.run",
        "tok1d.train.run",
        "tok1d.tokenizers.maetok",
    ),
    *("tok1d.tokenizers.semanticist", "tok1d.generators.autoregressive", "tok1d.evaluate.generation", "tqdm"),
    *("tok1d.evaluate.reconstruction", "tok1d.losses.discriminator", "yaml", "PIL.Image"),
]
TRAIN = (
    "{steps: 12, batch_size: 8, accumulate: 2, lr: 1e-3, warmup: 2, ema: 0.9, log_every: 1, save_every: 2, "
    "preview_every: 5}"
)
MUON = TRAIN.removesuffix("}") + ", optimizer: muon, muon: {lr: 1e-3}}"
VIT = "patch: 16, dim: 16, depth: 1, heads: 2"
RECIPES = {
    "tokenizer": f"""
kind: tokenizer
data: {{image_size: 32, pad: 2, flip: true, root: ROOT/data}}
model:
  name: semanticist
  image_size: 32
  channels: 1
  num_tokens: 4
  token_dim: 4
  objective: flow
  steps: 2
  encoder: {{{VIT}}}
  decoder: {{{VIT}}}
train: {TRAIN}
evaluate: {{num_images: 8, steps: 2, batch_size: 8}}
""",
    "gan": f"""
kind: tokenizer
data: {{image_size: 32, pad: 2, root: ROOT/data}}
model:
  name: maetok
  image_size: 32
  channels: 1
  num_tokens: 4
  token_dim: 4
  encoder: {{{VIT}, drop_path: 0.2}}
  decoder: {{{VIT}, absolute: false}}
  auxiliary: [{{target: hog, cell: 4, depth: 1}}]
adversarial:
  weight: 0.4
  start: 3
  diff_aug: true
  lecam: 0.01
  discriminator: {{name: patch, width: 4, layers: 1}}
train: {MUON}
evaluate: {{num_images: 8, batch_size: 8}}
""",
    "generator": f"""
kind: generator
data: {{image_size: 32, pad: 2, root: ROOT/data}}
tokenizer: ROOT/tokenizer/unbroken/model
num_tokens: 3
model:
  name: epsilon_llamagen
  num_tokens: 3
  token_dim: 4
  num_classes: 10
  dim: 16
  depth: 1
  heads: 2
  head: {{width: 16, depth: 1, steps: 2, sampler: euler}}
train: {TRAIN}
evaluate: {{num_samples: 10, steps: 2}}
""",
}
STAGES = ["half written", "written, no checksum", "whole, not renamed", "renamed, old ones not dropped"]


@dataclass
class Kill:
    """One kill and its outcome.

    Args:
        how: where it happened. steps: done by then. checkpoint: step of the newest one, 0 without any.
        left: temporary files it left behind. lost: steps computed again. same: whether the weights are the unbroken
            run's, bit for bit. problems: anything else that is wrong.
    """

    family: str
    number: int
    how: str = ""
    steps: int = 0
    checkpoint: int = 0
    left: str = ""
    lost: int = 0
    same: bool = False
    problems: str = ""


class Machine:
    """Starts processes of the command line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def train(self, family: str, out: Path, stage: tuple[int, int, float] | None = None) -> Any:
        arguments = ["train", str(self.root / f"{family}.yaml"), f"out={out}"]
        process = self.context.Process(target=child, args=(arguments, str(out.with_suffix(".txt")), stage))
        process.start()
        return process


def child(arguments: list[str], output: str, stage: tuple[int, int, float] | None) -> None:
    """Run the command in a child process; with `stage`, SIGKILL while a checkpoint is written."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from tok1d.cli import app as cli

    if stage is not None:
        die_while_writing(*stage)
    os._exit(flushed(cli.run(arguments)))


def flushed(code: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def die_while_writing(number: int, stage: int, share: float) -> None:
    """Send SIGKILL to this process while the `number`-th checkpoint is written, at a stage of STAGES."""
    import torch

    save, replace, count = torch.save, os.replace, [0]

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_save(content: Any, path: Path) -> None:
        count[0] += 1
        if count[0] < number or stage >= 2:
            save(content, path)
            return
        whole = io.BytesIO()
        save(content, whole)
        written = whole.getvalue()
        Path(path).write_bytes(written if stage == 1 else written[: int(share * len(written))])
        die()

    def dying_replace(source: Any, target: Any) -> None:
        mine = count[0] == number and Path(target).match("step-*.pt")
        if mine and stage == 2:
            die()
        replace(source, target)
        if mine:
            die()

    torch.save, os.replace = dying_save, dying_replace


def lines(out: Path) -> int:
    try:
        return (out / "log.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def unbroken(machine: Machine, family: str) -> list[float]:
    """Train without a kill; returns the seconds until each log line and until the end."""
    out, times, began = machine.root / family / "unbroken", [0.0], time.perf_counter()
    process = machine.train(family, out)
    while process.is_alive():
        times += [time.perf_counter() - began] * (lines(out) + 1 - len(times))
        time.sleep(0.002)
    assert process.exitcode == 0, out.with_suffix(".txt").read_text()
    return [*times, time.perf_counter() - began]


def kill_once(machine: Machine, family: str, number: int, times: list[float]) -> Kill:
    """Kill a run, resume it, compare. The place is chosen again if the run ended before the kill."""
    for attempt in range(20):
        rng = random.Random(f"{family} {number} {attempt}")
        out = machine.root / family / f"{number}-{attempt}"
        kill = Kill(family, number)
        if number % 5 in (1, 3):
            stage = (rng.randint(1, 6), rng.randrange(len(STAGES)), rng.random())
            kill.how = f"checkpoint {stage[0]} {STAGES[stage[1]]}"
            process = machine.train(family, out, stage)
            process.join()
        else:
            after, part = rng.randrange(len(times) - 1), rng.random()
            kill.how = f"{part:.2f} of the way from line {after} to the next"
            process = machine.train(family, out)
            while process.is_alive() and lines(out) < after:
                time.sleep(0.001)
            time.sleep(part * (times[after + 1] - times[after]))
            process.kill()
            process.join()
        if process.exitcode == -signal.SIGKILL and not (out / "report.json").exists():  # the last file of a run
            return go_on(machine, kill, out)
    raise AssertionError(f"{family} {number}: no attempt was killed, the last ended with {process.exitcode}")


def go_on(machine: Machine, kill: Kill, out: Path) -> Kill:
    """Check what a kill left behind, run the same command again, compare."""
    good = out.parent / "unbroken"
    before = (out / "log.jsonl").read_bytes() if (out / "log.jsonl").exists() else b""
    kill.steps = before.count(b"\n")
    names = [int(path.stem[5:]) for path in (out / "checkpoints").glob("step-*.pt")]
    kill.checkpoint = max(names, default=0)
    kill.lost = kill.steps - kill.checkpoint
    kill.left = ", ".join(sorted(re.sub(r"[0-9a-f]{12}", "*", path.name) for path in temporaries(out)))
    if kill.how.startswith("0."):
        started = (out / "config.yaml").exists()
        ended = kill.steps == lines(good)
        kill.how += " (finishing)" if ended else " (training)" if kill.steps else " (cache)" if started else " (start)"
        if kill.steps == 0 and (kill.family != "generator" or (out / "cache" / "index.json").exists()):
            kill.how = kill.how.replace("(cache)", "(before the first step)")
    process = machine.train(kill.family, out)
    process.join()
    problems = []
    if process.exitcode != 0:
        problems.append(f"ended with {process.exitcode}: {out.with_suffix('.txt').read_text()[-300:]}")
    else:
        weights = [folder / "model" / "model.safetensors" for folder in (out, good)]
        kill.same = weights[0].read_bytes() == weights[1].read_bytes()
        kept = b"".join(before.splitlines(keepends=True)[: kill.checkpoint])
        if not (out / "log.jsonl").read_bytes().startswith(kept):
            problems.append("steps before the checkpoint were computed again")
        if timeless(out) != timeless(good):
            problems.append("another log")
        if (out / "report.json").read_bytes() != (good / "report.json").read_bytes():
            problems.append("another report")
        if len({tuple(sorted(path.name for path in folder.glob("samples/*.png"))) for folder in (out, good)}) > 1:
            problems.append("other previews")
        if temporaries(out):
            problems.append(f"left {', '.join(path.name for path in temporaries(out))}")
    kill.problems = "; ".join(problems)
    if kill.same and not problems:
        shutil.rmtree(out)
    return kill


def temporaries(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if path.name.endswith((".tmp", ".old"))]


def timeless(out: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "images_per_second", "loader_wait", "tflops")
    return [{name: value for name, value in entry.items() if name not in timed} for entry in entries]


def write_data(root: Path) -> None:
    """Write 64 noise images per split as Fashion-MNIST files."""
    import numpy as np

    root.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        pixels = np.random.default_rng(len(prefix)).integers(0, 256, (64, 28, 28), np.uint8)
        labels = (np.arange(64) % 10).astype(np.uint8)
        for kind, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (root / f"{prefix}-{kind}").write_bytes(head + array.tobytes())


def run(root: Path, kills: int, log: Path) -> list[Kill]:
    """All kills of all families; each is appended to `log` as a JSON line immediately."""
    write_data(root / "data")
    machine, done = Machine(root), []
    for family, recipe in RECIPES.items():
        (root / f"{family}.yaml").write_text(recipe.replace("ROOT", str(root)))
        (root / family).mkdir()
        times = unbroken(machine, family)
        for number in range(kills):
            done.append(kill_once(machine, family, number, times))
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(done[-1])) + "\n")
    return done


def table(kills: list[Kill]) -> str:
    """The kills as Markdown."""
    rows = ["| family | kill | where it fell | steps done | newest checkpoint | left behind | lost | same bits |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for kill in kills:
        result = ("yes" if kill.same else "NO") + (f", {kill.problems}" if kill.problems else "")
        left = f"`{kill.left}`" if kill.left else ""
        cells = (kill.family, kill.number + 1, kill.how, kill.steps, kill.checkpoint, left, kill.lost, result)
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(rows)


def fill(page: Path, text: str) -> None:
    """Replace the table between the markers of a page."""
    begin, end = "<!-- kills: begin -->", "<!-- kills: end -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=2, help="of every family")
    parser.add_argument("--log", type=Path, help="file of JSON lines, one a kill")
    parser.add_argument("--table", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    began = time.time()
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # removes the locks of killed processes
    with tempfile.TemporaryDirectory() as folder:
        kills = run(Path(folder), options.kills, options.log or Path(folder) / "log.jsonl")
    failed = [kill for kill in kills if kill.problems or not kill.same]
    result = f"{len(kills)} kills, {len(kills) - len(failed)} ended with the unbroken run's bits"
    if options.table:
        day = time.strftime("%Y-%m-%d")
        fill(options.table, f"{result} ({day}, {(time.time() - began) / 60:.0f} minutes).\n\n{table(kills)}")
    print(table(kills) if failed or not options.table else result)
    print(result)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
