"""Error against CPU seconds: the small tokenizers as trained before and as their recipes train them now.

    python benchmarks/learning.py                     # the missing rows; hours on one core
    python benchmarks/learning.py --only smap         # some tokenizers (--list prints all)
    python benchmarks/learning.py --write             # tables and plots of docs/learning.md from the rows

Both sides of a comparison have the same model, the same seed and so the same initial weights, with two exceptions: the
recipe of SMAP also changed positions and initial scales, and that of Semanticist has positions of the tokens. `before`
has the optimizer, the schedule, the batches and the shares of dropped tokens that the recipe had before it was retuned,
`now` those of the recipe. CPU seconds are those of this process in training steps alone, on one thread. A row of
benchmarks/results/learning.jsonl is one point of a curve; a curve that is not complete is begun again.

The error is the mean squared error, in [0, 1], of the averaged weights' reconstructions from all tokens: for the first
2,000 test images at every point, and for all 10,000 at the end. Flow decoders run with the recipe's `evaluate`
settings. The errors of principal components are those of `python benchmarks/baselines.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import baselines
from table import add_line, fill, markdown, read_lines, write_lines

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RESULT = Path(__file__).parent / "results" / "learning.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "learning.md"
PLAIN = ("train.optimizer=adamw", "train.schedule=cosine", "train.warmup=100", "train.batch_size=64")
BETWEEN, AT_END, BATCH = 2000, 10_000, 250
SIDES = ("now", "before")
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A recipe, and the overrides that train its model as before.

    Args:
        before: the former settings, `train.steps` among them.
        every: steps between two points, of `before` and of `now`.
        early: steps between the points of `now` before the first of `every`.
        seeds: number of seeds.
    """

    recipe: str
    before: tuple[str, ...]
    every: tuple[int, int]
    early: int = 0
    seeds: int = 3


COMPARISONS = {
    "demo": Comparison(
        "fashion_mnist/demo_tokenizer",
        (
            *PLAIN,
            "train.lr=2e-3",
            "train.steps=1200",
            "model.decoder.token_positions=false",
            "model.nested.after=0.6",
            "model.nested.full_prob=0",
        ),
        (400, 500),
        early=50,
    ),
    "maetok": Comparison("fashion_mnist/maetok_ae", (*PLAIN, "train.lr=1e-3", "train.steps=2000"), (250, 100)),
    "smap": Comparison(
        "fashion_mnist/smap",
        (
            *PLAIN,
            "train.lr=1e-3",
            "train.steps=2000",
            "model.tail_drop.keep_per=iteration",
            "model.tail_drop.full_prob=0",
            "model.tail_drop.after=0",
            "model.bottleneck.initial_std=1",
            *(f"model.{part}.{field}" for part in ("encoder", "decoder") for field in ("rotary=none", "layer_scale=0")),
        ),
        (250, 100),
    ),
}
TITLES = {
    "demo": "Semanticist, 8 tokens of 16 numbers (`fashion_mnist/demo_tokenizer`)",
    "maetok": "plain autoencoder of MAETok, 16 tokens of 16 numbers (`fashion_mnist/maetok_ae`)",
    "smap": "SMAP, 16 tokens of 16 numbers (`fashion_mnist/smap`)",
}
NUMBERS = {"demo": 128, "maetok": 256, "smap": 256}  # of a code


def curve(recipe: str, overrides: Sequence[str], every: int, early: int, folder: Path) -> Iterator[Row]:
    """Train, and yield the points of the curve: step, CPU seconds, and error from all tokens."""
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
        if not done and run.step % (early if early and run.step < every else every):
            continue
        seconds += time.process_time() - mark
        run.check_finite()
        point = {"step": run.step, "cpu": round(seconds, 1), "mse": measured(run, settings, test, BETWEEN)}
        if done:
            point |= {"mse_all": measured(run, settings, test, len(test)), "last": True}
        yield point
        mark = time.process_time()


def measured(run: Any, settings: Any, test: Any, num: int) -> float:
    """Mean squared error in [0, 1] of the averaged weights for the first `num` test images."""
    import torch

    model, wanted, total = run.task.model, settings.evaluate, 0.0
    options = {} if model.spec.deterministic else {"steps": wanted.steps, "guidance": wanted.guidance}
    with run._evaluated(), torch.no_grad(), torch.random.fork_rng([]):
        for start in range(0, num, BATCH):
            images, labels = test.batch(range(start, min(start + BATCH, num)))
            condition = labels if model.spec.needs_label else None
            own = {} if model.spec.deterministic else {"generator": torch.Generator().manual_seed(start)}
            decoded = model.decode(model.encode(images, condition), condition, **options, **own)
            total += float((decoded.clamp(0, 1) - images).square().flatten(1).mean(1).sum())
    return total / num


def measure(name: str, side: str, seed: int, path: Path, runs: Path) -> None:
    """Measure a curve unless it is complete; points of an incomplete one are removed first."""
    comparison = COMPARISONS[name]
    key = {"name": name, "side": side, "seed": seed}
    rows = read_lines(path)
    own = [row for row in rows if row.items() >= key.items()]
    if own and own[-1].get("last"):
        return
    write_lines(path, [row for row in rows if not row.items() >= key.items()])
    now = side == "now"
    overrides = [f"seed={seed}", *(() if now else comparison.before)]
    early = comparison.early if now else 0
    points = curve(comparison.recipe, overrides, comparison.every[now], early, runs / f"{name}-{side}-{seed}")
    for point in points:
        add_line(path, {**key, **point})


def points_of(rows: Sequence[Row], name: str, side: str) -> dict[int, list[Row]]:
    """The points of the complete curves of one side of a comparison, by seed."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row["name"] == name and row["side"] == side:
            found.setdefault(row["seed"], []).append(row)
    return {seed: points for seed, points in found.items() if points[-1].get("last")}


def reached(points: Sequence[Row], goal: float) -> float | None:
    """CPU seconds at which the error falls to `goal`, on a line between the points around it; None if it does not."""
    before: Row | None = None
    for point in points:
        if point["mse"] <= goal:
            if before is None:
                return float(point["cpu"])
            share = (before["mse"] - goal) / (before["mse"] - point["mse"])
            return float(before["cpu"] + share * (point["cpu"] - before["cpu"]))
        before = point
    return None


def table(rows: Sequence[Row]) -> str:
    """One line for each comparison and seed: both errors, and when the new recipe reaches the former error."""
    pca = baselines.read()["reconstructions"][str(AT_END)]
    body = []
    for name, title in TITLES.items():
        before, now = points_of(rows, name, "before"), points_of(rows, name, "now")
        numbers = NUMBERS[name]
        limits = [f"{pca[f'pca-{n}']['mse']:.5f}" for n in (numbers // 2, numbers)]
        for seed in sorted(before.keys() & now.keys()):
            old, new = before[seed], now[seed]
            cpu, at = old[-1]["cpu"], reached(new, old[-1]["mse"])
            body.append(
                [
                    title,
                    str(seed),
                    f"{old[-1]['mse_all']:.5f}",
                    f"{cpu:.0f}",
                    "never" if at is None else f"{at:.0f}",
                    "" if at is None else f"{at / cpu:.2f}",
                    f"{new[-1]['mse_all']:.5f}",
                    f"{new[-1]['cpu']:.0f}",
                    *limits,
                ]
            )
    head = ["tokenizer", "seed", "former: error", "CPU s", "new: CPU s to that error", "share"]
    head += ["new: error at the end", "CPU s", "PCA, half as many numbers", "PCA, as many numbers"]
    return markdown(head, body)


def plot(rows: Sequence[Row], name: str) -> Any:
    """Error against CPU seconds of both sides, all seeds, and the lines of PCA; a PIL image."""
    from matplotlib.figure import Figure

    from tok1d.pictures import figure_image

    pca = baselines.read()["reconstructions"][str(BETWEEN)]
    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for side, label, colour in (("before", "former recipe, AdamW", "C1"), ("now", "recipe", "C0")):
        for index, points in enumerate(points_of(rows, name, side).values()):
            seconds, found = [point["cpu"] for point in points], [point["mse"] for point in points]
            axes.plot(seconds, found, color=colour, linewidth=1.5, label=label if index == 0 else None)
    for numbers, style in ((NUMBERS[name] // 2, ":"), (NUMBERS[name], "--")):
        value = pca[f"pca-{numbers}"]["mse"]
        axes.axhline(value, color="0.4", linestyle=style, linewidth=1, label=f"PCA, {numbers} numbers")
    axes.set_yscale("log")
    axes.set_xlabel("CPU seconds of one core")
    axes.set_ylabel(f"squared error, {BETWEEN:,} test images")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure_image(figure)


TABLES = {"learning": table}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="folder of the trainings")
    parser.add_argument("--write", action="store_true", help="write the table and the plots of docs/learning.md")
    given = parser.parse_args(args)
    if given.write:
        rows = read_lines(RESULT)
        fill(PAGE, TABLES, rows)
        for name in COMPARISONS:
            plot(rows, name).save(PAGE.parent / "images" / f"learning-{name}.png")
        return 0
    if given.list:
        print("\n".join(COMPARISONS))
        return 0
    for name in given.only:
        for seed in range(COMPARISONS[name].seeds):
            for side in given.sides:
                measure(name, side, seed, RESULT, given.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
