"""Trains own/* recipes on two folders of the user's kind and shows the reconstructions, for docs/own-data.md.

    python benchmarks/own.py              # the missing rows; about an hour on one core
    python benchmarks/own.py --list
    python benchmarks/own.py --write      # the table and the pictures of docs/own-data.md

The folders are emoji (one image of each base, in a folder per group) and the stamps of Tux Paint (Debian's package
tuxpaint-stamps-default, 796 drawings and photographs in 16 folders). A row trains one recipe on one folder for a number
of steps, and stores the errors of the test images and of the baselines beside them, from the run's report. CPU seconds
are those of the whole command: reading, training and evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import fill, markdown, write_json

RESULTS = Path(__file__).parent / "results" / "own"
PAGE = Path(__file__).parents[1] / "docs" / "own-data.md"
PACKAGE = "tuxpaint-stamps-default"
SHOWN = 8  # test images in a picture
STEPS = {"5": 1300, "20": 5200}  # of own/maetok in so many CPU-minutes
SETS = {"emoji": "emoji in 9 folders", "stamps": "stamps in 16 folders"}
ROWS = {f"{name}-{minutes}": (name, steps) for minutes, steps in STEPS.items() for name in SETS}
Record = dict[str, Any]


def emoji(folder: Path) -> None:
    """Write the first emoji of each base into FOLDER/GROUP/NUMBER.png."""
    from PIL import Image

    from tok1d.data import emoji_font
    from tok1d.data.emoji import BOX, draw
    from tok1d.data.emoji_table import bases, table

    images, places = draw(emoji_font.find(), BOX)
    everything, seen = table(), set()
    names = bases(everything)
    for image, place in zip(images, places, strict=True):
        if names[place] not in seen:
            seen.add(names[place])
            out = folder / everything[place].group.replace(" & ", "-").replace(" ", "-").lower()
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(out / f"{place:04d}.png")


def stamps(folder: Path) -> None:
    """Copy the images of the package into FOLDER/CATEGORY."""
    from tok1d.data.debian import fetch_package

    with tempfile.TemporaryDirectory() as work:
        fetch_package(PACKAGE, Path(work), "stamps")
        root = Path(work) / "usr" / "share" / "tuxpaint" / "stamps"
        for file in sorted(root.rglob("*.png")):
            first, *rest = file.relative_to(root).parts
            out = folder / first / "-".join(rest)
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out)


def folder_of(name: str, runs: Path) -> Path:
    """The folder of a set, which is made first."""
    folder = runs / "data" / name
    if not folder.exists():
        part = folder.with_name(f".{name}")
        shutil.rmtree(part, ignore_errors=True)
        {"emoji": emoji, "stamps": stamps}[name](part)
        part.rename(folder)
    return folder


def tok1d(*arguments: str) -> float:
    """Run a command on one thread and return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-m", "tok1d", *arguments], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def row(row_name: str, runs: Path, *extra: str) -> Record:
    """Train and measure one row."""
    name, steps = ROWS[row_name]
    data, out = folder_of(name, runs), runs / row_name
    command = ["train", "own/maetok", f"data.root={data}", f"train.steps={steps}", f"out={out}", *extra]
    seconds = tok1d(*command)
    pictures = runs / f"{row_name}-pictures"
    tok1d("reconstruct", str(out / "model"), str(data), "--num", str(SHOWN), "--out", str(pictures), "--overwrite")
    shutil.copyfile(pictures / "overview.png", RESULTS / f"{row_name}.png")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    errors = {each["name"]: each["value"] for each in report if each["name"].endswith("psnr")}
    return {"row": row_name, "command": f"tok1d {' '.join(command[:2])}", "steps": steps, "cpu": seconds, **errors}


def read() -> dict[str, Record]:
    """The stored rows."""
    files = {name: RESULTS / f"{name}.json" for name in ROWS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}


def table(records: dict[str, Record]) -> str:
    """PSNR of the tokenizer and of the baselines by set and time."""
    names = ("psnr", "baseline:flat-colour:psnr", "baseline:thumbnail-8:psnr")
    names += ("baseline:pca-128:psnr", "baseline:pca-256:psnr")
    head = ["images", "steps", "CPU s", "PSNR, dB", "flat colour", "8x8 thumbnail", "PCA, 128", "PCA, 256"]
    body = [
        [SETS[ROWS[name][0]], f"{found['steps']:,}", f"{found['cpu']:.0f}", *(f"{found[key]:.2f}" for key in names)]
        for name, found in records.items()
    ]
    return markdown(head, body)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, default=[], help="run these rows, even if they have a record"
    )
    parser.add_argument("--list", action="store_true", help="list the rows and whether they have a record")
    parser.add_argument("--runs", type=Path, default=Path("runs/own-data"), help="folder of images and trainings")
    parser.add_argument("--write", action="store_true", help="write the table and the pictures of docs/own-data.md")
    given = parser.parse_args(args)
    if given.write:
        fill(PAGE, {"own": table}, read())
        for name in read():
            shutil.copyfile(RESULTS / f"{name}.png", PAGE.parent / "images" / f"own-{name}.png")
        return 0
    for name in ROWS:
        path = RESULTS / f"{name}.json"
        if given.list:
            print(f"{'done   ' if path.exists() else 'missing'} {name}")
        elif name in given.only or (not given.only and not path.exists()):
            RESULTS.mkdir(parents=True, exist_ok=True)
            write_json(path, row(name, given.runs.resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
