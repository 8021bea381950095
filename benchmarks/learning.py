"""Error against CPU seconds: the small tokenizers as trained before and as their recipes train them now.

    python benchmarks/learning.py                     # the missing rows; hours on one core
    python benchmarks/learning.py --only smap         # some tokenizers (--list prints all)
    python benchmarks/learning.py --write             # tables and plots of docs/learning.md from the rows

Both sides of a comparison have the same model and the same initial weights (the seed). `before` has the optimizer, the
schedule, the batches and the shares of dropped tokens that the recipe had before it was retuned, `now` those of the
recipe. CPU seconds are those of this process in training steps alone, on one thread. A row of
benchmarks/results/learning.jsonl is one point of a curve; a curve that is not complete is begun again.

The error is the mean squared error of the averaged weights' reconstructions from all tokens, for the first 2,000 test
images in between and for all 10,000 at the end; flow decoders run with the recipe's `evaluate` settings. The line of
PCA is the error of as many principal components as a tokenizer has numbers, computed from the 60,000 training images.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RESULT = Path(__file__).parent / "results" / "learning.jsonl"
PLAIN = ("train.optimizer=adamw", "train.schedule=cosine", "train.warmup=100", "train.batch_size=64")
BETWEEN, AT_END, BATCH = 2000, 10_000, 250
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A recipe, and the overrides that train its model as before.

    Args:
        before: the former settings, `train.steps` among them.
        every: steps between two points, of `before` and of `now`.
        seeds: number of seeds.
    """

    recipe: str
    before: tuple[str, ...]
    every: tuple[int, int]
    seeds: int = 3


COMPARISONS = {
    "semanticist": Comparison(
        "fashion_mnist/semanticist",
        (
            *PLAIN,
            "train.warmup=200",
            "train.lr=1.5e-3",
            "train.ema=0.9995",
            "train.steps=12000",
            "model.nested.after=0.25",
        ),
        (1000, 500),
    ),
    "maetok": Comparison(
        "fashion_mnist/maetok", (*PLAIN, "train.lr=1e-3", "train.ema=0.999", "train.steps=3000"), (500, 500)
    ),
    "smap": Comparison(
        "fashion_mnist/smap",
        (
            *PLAIN,
            "train.lr=1e-3",
            "train.steps=2000",
            "model.tail_drop.keep_per=iteration",
            "model.tail_drop.full_prob=0",
        ),
        (250, 250),
    ),
}


def curve(recipe: str, overrides: Sequence[str], every: int, folder: Path) -> Iterator[Row]:
    """Train, and yield the points of the curve: step, CPU seconds, and error by number of tokens."""
    from tok1d.config.load import load_recipe
    from tok1d.train.images import open_split
    from tok1d.train.loop import begin
    from tok1d.train.tasks import build_task

    settings = load_recipe(recipe, [*overrides, f"out={folder}"])
    run = begin(settings, build_task(settings), folder)
    run.prepare()
    test = open_split(settings, "test")
    seconds, mark = 0.0, time.process_time()
    for batches in run.batches(range(settings.train.steps)):
        run.train_step(batches)
        run.step += 1
        done = run.step == settings.train.steps
        if not done and run.step % every:
            continue
        seconds += time.process_time() - mark
        run.check_finite()
        num = min(AT_END if done else BETWEEN, len(test))
        yield {"step": run.step, "cpu": round(seconds, 1), "images": num, "mse": errors(run, settings, test, num)}
        mark = time.process_time()


def errors(run: Any, settings: Any, test: Any, num: int) -> dict[str, float]:
    """Mean squared error of the averaged weights for the first `num` test images, by number of tokens."""
    import torch

    model, wanted = run.task.model, settings.evaluate
    counts = [2**i for i in range(12) if 2**i < model.spec.length and model.spec.ordered] + [model.spec.length]
    sums = dict.fromkeys(counts, 0.0)
    options = {} if model.spec.deterministic else {"steps": wanted.steps, "guidance": wanted.guidance}
    with run._evaluated(), torch.no_grad(), torch.random.fork_rng([]):
        for start in range(0, num, BATCH):
            images, labels = test.batch(range(start, min(start + BATCH, num)))
            condition = labels if model.spec.needs_label else None
            tokens = model.encode(images, condition)
            for k in counts:
                own = {} if model.spec.deterministic else {"generator": torch.Generator().manual_seed(start)}
                keep = {} if k == model.spec.length else {"keep": k}
                decoded = model.decode(tokens, condition, **keep, **options, **own)
                sums[k] += float((decoded - images).square().flatten(1).mean(1).sum())
    return {str(k): value / num for k, value in sums.items()}


def read(path: Path = RESULT) -> list[Row]:
    """The stored points."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def measure(name: str, side: str, seed: int, path: Path, runs: Path) -> None:
    """Measure a curve unless it is complete; points of an incomplete one are removed first."""
    comparison = COMPARISONS[name]
    key = {"name": name, "side": side, "seed": seed}
    rows = read(path)
    own = [row for row in rows if row.items() >= key.items()]
    if own and own[-1].get("last"):
        return
    write(path, [row for row in rows if not row.items() >= key.items()])
    now = side == "now"
    overrides = [f"seed={seed}", *(() if now else comparison.before)]
    points = curve(comparison.recipe, overrides, comparison.every[now], runs / f"{name}-{side}-{seed}")
    for point in points:
        last = point["images"] == AT_END
        row = {**key, **point, **({"last": True} if last else {})}
        write(path, [*read(path), row])
        print(json.dumps(row), flush=True)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace the stored points."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="folder of the trainings")
    given = parser.parse_args(args)
    if given.list:
        print("\n".join(COMPARISONS))
        return 0
    for name in given.only:
        for seed in range(COMPARISONS[name].seeds):
            for side in ("now", "before"):
                measure(name, side, seed, RESULT, given.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
