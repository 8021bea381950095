"""Sharp decoders beside plain ones: perceptual and adversarial losses against squared error alone, after equal steps.

    python benchmarks/sharp.py            # the missing rows; about an hour on one core
    python benchmarks/sharp.py --write    # the table and the picture of docs/learning.md

Both sides of a pair start from the bundled model and have the same seed, steps and learning rates; `bundled` is that
model as it is. A row of benchmarks/results/sharp.jsonl is one model, measured on all 10,000 test images, all tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import FD, add_line, fill, images, is_there, markdown, read_lines, train

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RESULT = Path(__file__).parent / "results" / "sharp.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "learning.md"
PICTURE = PAGE.parent / "images" / "learning-sharp.png"
SHOWN = 10  # test images in the picture
Row = dict[str, Any]
# Bundled model, recipes by side, overrides of both.
PAIRS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "smap": (
        "fashion-mnist-smap",
        {"plain": "fashion_mnist/smap", "sharp": "fashion_mnist/smap_sharp"},
        ("train.steps=2000", "train.ema=0.998"),
    ),
    "maetok": (
        "fashion-mnist-maetok",
        {"plain": "fashion_mnist/maetok_finetune", "sharp": "fashion_mnist/maetok_finetune_sharp"},
        ("train.steps=3000", "train.ema=0.998", "model.finetune.until=0.5"),
    ),
}
SIDES = ("bundled", "plain", "sharp")
TITLES = {
    "bundled": "the bundled model",
    "plain": "squared error alone",
    "sharp": "with perceptual and adversarial loss",
}


def model(name: str, side: str, runs: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a side, which is trained first where that is missing, and its steps and seconds."""
    import tok1d

    bundled, recipes, overrides = PAIRS[name]
    if side == "bundled":
        return tok1d.load(bundled), {}
    settings = [*overrides, f"init_from={bundled}", "evaluate.num_images=100"]
    found = train(recipes[side], settings, runs / f"{name}-{side}")
    return found, {key: found.card.trained[key] for key in ("steps", "seconds")}


def measured(name: str, side: str, runs: Path) -> Row:
    """The row of a model; its reconstructions of the first test images are stored beside the trainings."""
    import torch

    import tok1d

    tokenizer, trained = model(name, side, runs)
    found = tok1d.evaluate(tokenizer, "fashion_mnist", keep=[tokenizer.spec.length])
    shown, labels = images("test", SHOWN).batch(range(SHOWN))
    with torch.no_grad():
        condition = labels if tokenizer.spec.needs_label else None
        decoded = tokenizer.decode(tokenizer.encode(shown, condition), condition)
    runs.mkdir(parents=True, exist_ok=True)
    torch.save(decoded.clamp(0, 1), runs / f"{name}-{side}.pt")
    metrics = ("psnr", "ssim", FD, "judge_accuracy")
    return trained | {metric: found.value(metric, keep=tokenizer.spec.length) for metric in metrics}


def table(rows: Sequence[Row]) -> str:
    """A line for each model."""
    body = []
    for name, (bundled, recipes, _) in PAIRS.items():
        for row in (each for side in SIDES for each in rows if (each["name"], each["side"]) == (name, side)):
            what = f"`{bundled}`" if row["side"] == "bundled" else f"`{recipes[row['side']]}`"
            steps, seconds = (f"{row[key]:,.0f}" if key in row else "" for key in ("steps", "seconds"))
            numbers = [f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", f"{row[FD]:.3f}", f"{row['judge_accuracy']:.1%}"]
            body.append([f"{what}, {TITLES[row['side']]}", steps, seconds, *numbers])
    return markdown(["model", "further steps", "seconds", "PSNR, dB", "SSIM", "fd", "accuracy of the judge"], body)


def draw(runs: Path) -> None:
    """The first test images, and below them the reconstructions of all models."""
    import torch

    from tok1d.pictures import grid, save_png

    rows = [images("test", SHOWN).batch(range(SHOWN))[0]]
    rows += [torch.load(runs / f"{name}-{side}.pt") for name in PAIRS for side in SIDES]
    save_png(grid(torch.cat(rows), SHOWN, zoom=2), PICTURE)


TABLES = {"sharp": table}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--runs", type=Path, default=Path("runs/sharp"), help="folder of the trainings")
    parser.add_argument("--write", action="store_true", help="write the table and the picture of docs/learning.md")
    given = parser.parse_args(args)
    if given.write:
        fill(PAGE, TABLES, read_lines(RESULT))
        draw(given.runs)
        return 0
    for name in given.only:
        for side in SIDES:
            key = {"name": name, "side": side}
            if not is_there(read_lines(RESULT), key):
                add_line(RESULT, {**key, **measured(name, side, given.runs.resolve())})
    return 0


if __name__ == "__main__":
    sys.exit(main())
