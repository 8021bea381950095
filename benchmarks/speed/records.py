"""Records of the rows: stored in one JSON file, printed as a table."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tok1d.errors import DataError

Record = dict[str, Any]
SETTING = ("sizes", "device", "threads", "precision")  # identify a record, together with the name of the row


def machine(device: torch.device, precision: str, command: str) -> Record:
    """Device, versions and command of a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def cpu_name() -> str:
    """The name of the processor, if the system reports it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the working tree, with "+changes" if tracked files differ from it; "unknown" without git."""

    def git(*args: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, check=True, encoding="utf-8"
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def load(path: Path) -> list[Record]:
    """The records of a file; none if it does not exist.

    Raises:
        DataError: not a JSON list of records.
    """
    if not path.exists():
        return []
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return [record for record in records if key(record)]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise DataError(f"{path}: expected a JSON list of benchmark records, got {error!r}; move it away") from None


def key(record: Record) -> tuple[Any, ...]:
    """The key of a record; a record replaces another with the same key."""
    return (record["row"], *(record[name] for name in SETTING))


def store(path: Path, record: Record) -> None:
    """Add a record to the file; it replaces a record of the same row and setting."""
    records = load(path)
    keys = [key(old) for old in records]
    if key(record) in keys:
        records[keys.index(key(record))] = record
    else:
        records.append(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rate(seconds: float, unit: str) -> str:
    """Images or tokens per second; milliseconds for calls and steps."""
    if unit in ("call", "step"):
        return f"{seconds * 1e3:.3g} ms"
    return f"{1 / seconds:.3g} {unit}s/s"


def share(arm: Record) -> str:
    """Percentage of the matmul limit; empty if the arm has no matrix product."""
    return f"{100 * arm['share']:.0f} %" if arm["gflop"] else ""


def ratio(record: Record) -> str:
    """Slow over fast, with the range over the pairs."""
    if "ratio" not in record:
        return ""
    value = record["ratio"]
    return f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})"


def lines(record: Record, work: bool = False) -> list[list[str]]:
    """The cells of a record, one line per arm. The last cell is the speed of the release, or with `work` the GFLOP."""
    arms = [record[name] for name in ("fast", "slow") if name in record]
    last = [gflop(arm) if work else "" for arm in arms]
    if not work and record["release"]:
        last[0] = rate(record["release"], record["unit"])
    rows = [
        ["", arm["what"], rate(arm["seconds"], record["unit"]), share(arm), "", cell] for arm, cell in zip(arms, last)
    ]
    rows[0][0] = record["row"]
    rows[-1][4] = ratio(record)
    return rows


def gflop(arm: Record) -> str:
    """Counted operations per unit, in 10^9."""
    return f"{arm['gflop']:.3g}"


WIDTHS = (19, 25, 15, 6, 18, 12)


def header(work: bool = False) -> list[list[str]]:
    """The two lines above the cells of `lines`."""
    last = ("GFLOP", "per unit") if work else ("release,", "as reported")
    return [["", "", "", "of", "times faster", last[0]], ["row", "variant", "speed", "limit", "(min-max)", last[1]]]


def text_lines(rows: Sequence[Sequence[str]]) -> str:
    """Aligned cells, at most 100 columns wide."""
    return "\n".join(" ".join(cell.ljust(width) for cell, width in zip(row, WIDTHS)).rstrip() for row in rows)


def conditions(group: list[Record]) -> str:
    """One line with the machine, versions and dates of the records of one setting."""
    first = group[0]
    commits = dict.fromkeys(record["commit"] for record in group)
    days = dict.fromkeys(record["date"][:10] for record in group)
    limits = sorted({round(record["matmul_gflops"]) for record in group})
    return (
        f"{first['device']}, {first['threads']} threads, {first['precision']}, sizes {first['sizes']}, "
        f"torch {first['torch']}, commit {', '.join(commits)}, {', '.join(days)}, "
        f"matmul limit {' to '.join(map(str, limits[:1] + limits[1:][-1:]))} GFLOP/s"
    )


def markdown(records: list[Record], work: bool = False) -> str:
    """A table per machine and setting; with `work` the GFLOP per unit of both arms, else the speed of the release."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(key(record)[1:]), []).append(record)
    way = ["speed", *(["GFLOP"] if work else []), "of the limit"]
    titles = ["row", "ours", *way, "against", *way, "times faster (min-max)"]
    titles += [] if work else ["release, as reported"]
    parts = []
    for group in groups.values():
        parts += [conditions(group) + ".", ""]
        parts += [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
        for record in group:
            arms = lines(record, work)
            ways = [[*arm[1:3], *(arm[5:] if work else []), arm[3]] for arm in arms] + [[""] * (1 + len(way))]
            cells = [f"`{record['row']}`", *ways[0], *ways[1], ratio(record), *([] if work else arms[0][5:])]
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts).rstrip()
