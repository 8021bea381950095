"""Images a second of the bundled generators with two settings in one process.

    python benchmarks/generators.py            # the missing rows: quality of both settings, then their speed
    python benchmarks/generators.py --only fashion-mnist-epsilon-llamagen
    python benchmarks/generators.py --again    # measure the speed anew; on a machine without other jobs
    python benchmarks/generators.py --write    # the table of docs/fewer.md

A row of benchmarks/results/generators.jsonl is one generator. `before` are its default settings, `after` those of fewer
network calls. Quality: `fd` of `--num` samples to the training images, as in the card of the model.
Speed: batches of 100 samples on one thread, decoded; the two settings take turns, five times each after a warm-up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from table import add_line, fill, markdown, read_lines, write_lines

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RESULT = Path(__file__).parent / "results" / "generators.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "fewer.md"
TURNS, BATCH = 5, 100
Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two settings of a generator: options of `tok1d evaluate generation`."""

    data: str
    before: dict[str, Any]
    after: dict[str, Any] = field(default_factory=dict)
    guidance: float = 1.0

    def settings(self, side: str) -> dict[str, Any]:
        """The options of a side."""
        return {"guidance": self.guidance, **(self.before if side == "before" else self.after)}


PAIRS = {
    "fashion-mnist-epsilon-llamagen": Pair("fashion_mnist", {"decoder_steps": 4}, {"decoder_steps": 1}, guidance=3.5),
    "fashion-mnist-sit": Pair(
        "fashion_mnist", {"sampler": "sde", "steps": 50}, {"sampler": "heun", "steps": 8}, guidance=1.5
    ),
    "fashion-mnist-card": Pair(
        "fashion_mnist", {"sampler": "euler", "steps": 25}, {"sampler": "heun", "steps": 8}, guidance=1.5
    ),
}


def quality(name: str, pair: Pair, side: str, num: int) -> Row:
    """The distance of samples with the settings of a side, and the evaluations that a sample takes."""
    import tok1d

    found = tok1d.evaluate(name, pair.data, num_samples=num, metrics=("fd",), batch_size=250, **pair.settings(side))
    (record,) = (each for each in found.records if each.name.startswith("fd@"))
    calls = {key: (getattr(record, key) or {}).get("evaluations") for key in ("sampling", "decoding")}
    return {"fd": record.value, "network": record.name, **calls}


def speed(name: str, pair: Pair) -> Row:
    """Images a second of both sides, and the ratios of the turns."""
    import tok1d

    generator = tok1d.load_pair(name)[0]
    classes = list(range(min(generator.config.num_classes, 10)))

    def once(side: str) -> float:
        options = pair.settings(side)
        begin = time.perf_counter()
        generator.generate(classes, num=BATCH // len(classes), seed=0, batch_size=BATCH, **options)
        return time.perf_counter() - begin

    for side in ("before", "after"):
        once(side)
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    for turn in range(TURNS):
        for side in ("before", "after") if turn % 2 == 0 else ("after", "before"):
            seconds[side].append(once(side))
    ratios = sorted(a / b for a, b in zip(seconds["before"], seconds["after"], strict=True))
    rates = {side: BATCH / statistics.median(found) for side, found in seconds.items()}
    return {"images_per_second": rates, "ratio": [ratios[0], statistics.median(ratios), ratios[-1]]}


def about() -> Row:
    """The machine and the versions of a measurement."""
    import platform

    import torch

    from tok1d.train.run import code_version

    return {"device": platform.processor() or platform.machine(), "torch": torch.__version__, "commit": code_version()}


def measure(given: argparse.Namespace) -> None:
    """Measure the rows that are missing; with `again` the speed of all."""
    for name in given.only or PAIRS:
        rows, pair = read_lines(given.result), PAIRS[name]
        asked = {"generator": name, "num": given.num, "before": pair.before, "after": pair.after}
        old = next((row for row in rows if all(row.get(key) == value for key, value in asked.items())), None)
        if old is not None and not given.again:
            continue
        sides = {side: (old or {}).get(f"{side} quality") or quality(name, pair, side, given.num) for side in SIDES}
        row = {**asked, **{f"{side} quality": found for side, found in sides.items()}, **speed(name, pair), **about()}
        if old is not None:
            write_lines(given.result, [each for each in rows if each is not old])
        add_line(given.result, row)


SIDES = ("before", "after")


def said(settings: Row) -> str:
    """Settings as text."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items()) or "default"


def table(rows: Sequence[Row]) -> str:
    """A line for each generator and side."""
    body = []
    for row in rows:
        for side in SIDES:
            found = row[f"{side} quality"]
            low, middle, high = row["ratio"]
            times = f"{middle:.1f} ({low:.1f} to {high:.1f})" if side == "after" else ""
            calls = " + ".join(f"{found[key]:g}" for key in ("sampling", "decoding") if found[key])
            rate = f"{row['images_per_second'][side]:.0f}"
            body.append([f"`{row['generator']}`", said(row[side]), calls, f"{found['fd']:.3f}", rate, times])
    head = ["generator", "settings", "network calls: generator + decoder", "fd", "images a second", "times faster"]
    return markdown(head, body)


TABLES = {"generators": table}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PAIRS, help="generators")
    parser.add_argument("--num", type=int, default=10_000, help="samples of a distance")
    parser.add_argument("--again", action="store_true", help="measure the speed of all rows anew")
    parser.add_argument("--result", type=Path, default=RESULT, help="file of the rows")
    parser.add_argument("--write", action="store_true", help="write the table of docs/fewer.md")
    given = parser.parse_args(args)
    if given.write:
        fill(PAGE, TABLES, read_lines(given.result))
        return 0
    measure(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
