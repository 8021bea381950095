"""A long soak test: does the memory of a training grow, does its number of open files?

    python benchmarks/soak.py fashion_mnist/semanticist --minutes 60 train.evaluate_every=250 evaluate.num_images=1000

Trains with previews, evaluations and checkpoints in a process of its own, and stops it after `--minutes` with SIGTERM,
so that it writes a checkpoint. Every `--every` seconds the script reads resident memory, open files and threads of that
process. Each reading is one line of OUT.soak.jsonl, beside the run folder. The summary goes to
benchmarks/results/soak.json. `--write` puts it into docs/reliability.md, together with the growth of all runs whose
readings are in benchmarks/results/soak/. To keep the readings of a run there:

    gzip -9 -n -c OUT.soak.jsonl > benchmarks/results/soak/COMMIT.jsonl.gz

Growth is the slope of a line through all readings after the warm-up. The slope through the lowest reading of each
stretch of `--stretch` minutes is printed beside it: memory that is never given back raises both, but short dips change
the second one much more. Anonymous memory is resident memory without the pages of files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "soak.json"
READINGS = RESULT.with_suffix("")  # one compressed file per run, named after its commit
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
MB = 2**20
WARM_UP, STRETCH = 10.0, 5.0  # minutes
NAMED = (
    ("resident memory, MB", "rss_mb"),
    ("of it anonymous, MB", "anonymous_mb"),
    ("open files", "files"),
    ("threads", "threads"),
)
Readings = list[dict[str, float]]


def read(process: Any, began: float) -> dict[str, float]:
    """Resident memory in MB (total, and its anonymous part where the system reports it), open files and threads of a
    process and its children, with the minutes since the start."""
    family = [process, *process.children(recursive=True)]
    memory = [each.memory_info() for each in family]
    return {
        "minute": round((time.monotonic() - began) / 60, 3),
        "rss_mb": round(sum(each.rss for each in memory) / MB, 3),
        "anonymous_mb": round(sum(each.rss - getattr(each, "shared", 0) for each in memory) / MB, 3),
        "files": sum(each.num_fds() for each in family),
        "threads": sum(each.num_threads() for each in family),
    }


def watch(command: Sequence[str], minutes: float, every: float, log: Path) -> Readings:
    """Run a command for so many minutes, then send SIGTERM; returns the readings."""
    import psutil

    readings: Readings = []
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as lines, subprocess.Popen(command) as running:
        process, began = psutil.Process(running.pid), time.monotonic()
        while running.poll() is None and time.monotonic() - began < 60 * minutes:
            try:
                readings.append(read(process, began))
            except psutil.Error:  # the process or one of its children has just ended
                continue
            lines.write(json.dumps(readings[-1]) + "\n")
            lines.flush()
            time.sleep(every)
        running.send_signal(signal.SIGTERM)
        if (code := running.wait()) not in (0, 130):
            raise RuntimeError(
                f"the training ended with code {code} after {(time.monotonic() - began) / 60:.1f} minutes"
            )
    return readings


def growth(readings: Readings, key: str, *, warm_up: float, stretch: float) -> dict[str, Any]:
    """Growth of a reading in ten minutes, after the warm-up.

    `in_ten_minutes` is the slope of a line through all readings; this is the result. `lows_in_ten_minutes` is the slope
    through the lowest reading of each stretch, which short dips change much.

    Raises:
        ValueError: fewer than two whole stretches after the warm-up.
    """
    warm = [entry for entry in readings if entry["minute"] >= warm_up]
    count = int((warm[-1]["minute"] - warm_up) / stretch) if warm else 0
    lows = [
        min(e[key] for e in warm if warm_up + n * stretch <= e["minute"] < warm_up + (n + 1) * stretch)
        for n in range(count)
    ]
    if len(lows) < 2:
        raise ValueError(f"expected two stretches of {stretch:g} minutes after minute {warm_up:g}, got {len(lows)}")
    slope = statistics.linear_regression([n * stretch for n in range(count)], lows).slope
    line = statistics.linear_regression([e["minute"] for e in warm], [e[key] for e in warm]).slope
    return {"in_ten_minutes": round(10 * line, 3), "lows_in_ten_minutes": round(10 * slope, 3), "lows": lows}


def summary(readings: Readings, *, warm_up: float, stretch: float) -> dict[str, Any]:
    """The figures in docs/reliability.md."""
    return {
        "minutes": readings[-1]["minute"],
        "readings": len(readings),
        "warm_up": warm_up,
        "stretch": stretch,
        **{key: growth(readings, key, warm_up=warm_up, stretch=stretch) for _, key in NAMED},
        "highest_rss_mb": max(entry["rss_mb"] for entry in readings),
    }


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    rows = [
        f"| {name} | {' '.join(f'{low:.0f}' for low in record[key]['lows'])} | {record[key]['in_ten_minutes']:+g} | "
        f"{record[key]['lows_in_ten_minutes']:+g} |"
        for name, key in NAMED
    ]
    lowest = f"lowest reading of each {record['stretch']:g} minutes"
    head = [f"| | {lowest} | growth in ten minutes, all readings | growth, lowest readings |", "|---|---|---:|---:|"]
    said = (
        f"`{record['command']}` at `{record['commit']}`, {record['machine']}: {record['minutes']:.0f} minutes, "
        f"{record['steps']:,} steps, {record['previews']} previews, {record['evaluations']} evaluations (of "
        f"averaged and of raw weights), {record['checkpoints']} checkpoints; without the first "
        f"{record['warm_up']:g} minutes. Highest reading {record['highest_rss_mb']:.0f} MB."
    )
    return "\n".join([said, "", *head, *rows])


def done(out: Path, every: int) -> dict[str, int]:
    """Steps, previews, evaluations and checkpoints of the run (checkpoints by the step count: most are deleted)."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = max(entry["step"] for entry in entries)
    return {
        "steps": steps,
        "previews": len(list((out / "samples").glob("*.png"))),
        "evaluations": sum(any("@" in key for key in entry) for entry in entries),
        "checkpoints": steps // every if every else 0,
    }


def standard_error(readings: Readings, key: str, *, warm_up: float, stretch: float) -> float:
    """Standard error of the growth in ten minutes, by a line through the means of the stretches (about independent)."""
    warm = [entry for entry in readings if entry["minute"] >= warm_up]
    times = [warm_up + n * stretch for n in range(int((warm[-1]["minute"] - warm_up) / stretch))]
    means = [statistics.mean(e[key] for e in warm if t <= e["minute"] < t + stretch) for t in times]
    slope, start = statistics.linear_regression(times, means)
    left = sum((mean - start - slope * t) ** 2 for t, mean in zip(times, means, strict=True)) / (len(times) - 2)
    return 10 * math.sqrt(left / sum((t - statistics.mean(times)) ** 2 for t in times))


def history(folder: Path = READINGS, *, warm_up: float = WARM_UP, stretch: float = STRETCH) -> str:
    """Growth of resident memory in all runs whose readings are stored, as Markdown."""
    rows = []
    for path in sorted(folder.glob("*.jsonl.gz"), key=lambda path: path.name.removesuffix(".jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            readings = [json.loads(line) for line in lines]
        found = growth(readings, "rss_mb", warm_up=warm_up, stretch=stretch)
        error = standard_error(readings, "rss_mb", warm_up=warm_up, stretch=stretch)
        lows = found["lows_in_ten_minutes"]
        name = path.name.removesuffix(".jsonl.gz")
        rows.append(f"| `{name}` | {found['in_ten_minutes']:+.2f} | {error:.2f} | {lows:+.2f} |")
    head = [
        "| commit | growth in ten minutes, MB, all readings | standard error | growth, lowest readings |",
        "|---|---:|---:|---:|",
    ]
    return "\n".join([*head, *rows])


def page(record: dict[str, Any], text: str) -> str:
    """The page with both tables written between their markers."""
    for name, made in (("soak", table(record)), ("soaks", history())):
        before, rest = text.split(f"<!-- {name}: begin -->")
        after = rest.split(f"<!-- {name}: end -->")[1]
        text = f"{before}<!-- {name}: begin -->\n\n{made}\n\n<!-- {name}: end -->{after}"
    return text


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="fashion_mnist/semanticist")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=5, help="seconds between readings")
    parser.add_argument("--warm-up", type=float, default=WARM_UP, help="minutes at the start that do not count")
    parser.add_argument("--stretch", type=float, default=STRETCH, help="minutes of each stretch")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/reliability.md; runs nothing")
    arguments = parser.parse_args(args)
    if arguments.write:
        PAGE.write_text(
            page(json.loads(RESULT.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")), encoding="utf-8"
        )
        return

    import platform

    from tok1d.config.load import load_recipe
    from tok1d.train.run import code_version

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    command = [sys.executable, "-m", "tok1d", "train", arguments.recipe, *arguments.overrides]
    commit = code_version()
    readings = watch(command, arguments.minutes, arguments.every, Path(f"{recipe.out}.soak.jsonl"))
    record = {
        "command": " ".join(["python", "benchmarks/soak.py", *(args or sys.argv[1:])]),
        "commit": commit,
        "machine": f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads",
        **summary(readings, warm_up=arguments.warm_up, stretch=arguments.stretch),
        **done(Path(recipe.out), recipe.train.save_every),
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
