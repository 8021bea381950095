"""Common code of the experiment tables: trainings that resume, one JSON record per row, tables between markers."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FD = "fd@fashion-mnist-cnn"
SIZE, PAD = 28, 0  # of the small recipes
Records = dict[str, dict[str, Any]]
RowFunction = Callable[[Path], dict[str, Any]]


def images(split: str, num: int) -> Any:
    """The first Fashion-MNIST images of a split."""
    from tok1d.data.images import ImageSource, open_images

    source = ImageSource("fashion_mnist", image_size=SIZE, channels=1, pad=PAD, limit=num)
    return open_images(source, split)  # type: ignore[arg-type]


def classifier() -> Any:
    from tok1d.zoo import store

    return store.load("fashion-mnist-cnn")


def values(records: list[Any]) -> dict[str, float]:
    """Metrics by name, without the accuracy of the classifier on the test images themselves."""
    return {record.name: record.value for record in records if record.keep is not None}


def train(recipe: str, overrides: list[str], out: Path) -> Any:
    """The model of a run folder, which is trained first if the run is not finished."""
    from tok1d.config.load import load_recipe
    from tok1d.train import folder, run
    from tok1d.zoo import store

    if not folder.is_finished(out):
        run.train(load_recipe(recipe, [*overrides, f"out={out}"]), name=recipe)
    return store.load(out / "model")


def trained(out: Path) -> dict[str, Any]:
    """Steps, seconds and whether the loss had flattened: the last tenth of the run against the tenth before."""
    from tok1d.train.log import read_log
    from tok1d.zoo import store

    entries = read_log(out / "log.jsonl")
    losses = [sum(v for k, v in entry.items() if k.startswith("loss")) for entry in entries]
    tenth = max(len(losses) // 10, 1)
    before, last = (sum(part) / tenth for part in (losses[-2 * tenth : -tenth], losses[-tenth:]))
    model = store.load(out / "model")
    return {
        "steps": model.card.trained["steps"],
        "seconds": model.card.trained["seconds"],
        "seed": model.card.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": last,
        "loss_change": (last - before) / abs(before),
        "flattened": abs(last - before) < 0.01 * abs(before),
        "commit": model.card.commit,
        "fingerprint": model.card.fingerprint,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a record, completely or not at all, with the versions and the machine after its first two entries."""
    import platform

    import torch

    from tok1d.train.run import code_version

    about = {
        "measured_at": code_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    first = {key: content[key] for key in ("row", "command") if key in content}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp")
    temporary.write_text(json.dumps({**first, **about, **content}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def write_row(results: Path, script: str, name: str, content: dict[str, Any]) -> None:
    """Write the record of a row; `script` is the file in benchmarks/ that made it."""
    about = {"row": name, "command": f"python benchmarks/{script} --only {name}"}
    write_json(results / f"{name}.json", {**about, **content})


def main(
    script: str,
    doc: str | None,
    rows: Mapping[str, RowFunction],
    results: Path,
    write: Callable[[Path], None],
    args: Sequence[str] | None = None,
) -> None:
    """The command line of a table: run the missing or the given rows, list them, or write the page.

    Args:
        script: file name in benchmarks/; its stem is the name of the default folder of trainings.
        rows: by name, in the order they are run; each receives the folder of the trainings and returns its record.
        results: folder of the records; `write` receives it to fill the page.
    """
    stem = script.removesuffix(".py")
    page = f"docs/{stem.removesuffix('_table')}.md"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="ROW", help="run these rows, even if they have a record"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs") / stem, help="folder of the trainings")
    parser.add_argument("--list", action="store_true", help="list the rows and whether they have a record")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {page}")
    arguments = parser.parse_args(args)
    if unknown := set(arguments.only) - rows.keys():
        parser.error(f"no row {', '.join(sorted(unknown))}; --list prints them")
    if arguments.write:
        write(results)
        return
    for name, row in rows.items():
        there = (results / f"{name}.json").exists()
        if arguments.list:
            print(f"{'done   ' if there else 'missing'} {name}")
        elif name in arguments.only or (not arguments.only and not there):
            print(f"row {name}", flush=True)
            write_row(results, script, name, row(arguments.runs.resolve()))


def read(folder: Path) -> Records:
    """The records by row name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with one JSON object a line; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace the rows of such a file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)


def add_line(path: Path, row: dict[str, Any]) -> None:
    """Add a row to such a file, and print it."""
    write_lines(path, [*read_lines(path), row])
    print(json.dumps(row), flush=True)


def is_there(rows: Sequence[dict[str, Any]], key: dict[str, Any]) -> bool:
    """Whether one of the rows has these entries."""
    return any(row.items() >= key.items() for row in rows)


def seeds(records: Records, kind: str) -> list[dict[str, Any]]:
    """The existing records of a kind of row, seeds 0 to 2."""
    return [records[f"{kind}-{seed}"] for seed in range(3) if f"{kind}-{seed}" in records]


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns after the first right-aligned; without rows a sentence."""
    if not body:
        return "Not measured yet."
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and range of a value over seeds, as text."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def trainings(records: Records) -> str:
    """The trainings: steps, parameters, seeds, time, and whether the loss had flattened."""
    body = []
    for name, record in records.items():
        if "steps" in record and "loss_change" in record:
            flat = "yes" if record["flattened"] else f"no ({100 * record['loss_change']:+.1f} %)"
            body.append(
                [
                    f"`{name}`",
                    str(record["seed"]),
                    f"{record['parameters']:,}",
                    f"{record['steps']:,}",
                    f"{record['seconds']:.0f} s",
                    flat,
                    f"`{record['commit']}`",
                ]
            )
    return markdown(["row", "seed", "parameters", "steps", "training", "loss flat", "commit"], body)


def fill(page: Path, tables: Mapping[str, Callable[[Any], str]], records: Any) -> None:
    """Fill the given tables of a page between `<!-- table NAME -->` and `<!-- end -->`; the rest is unchanged."""

    def put(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{tables[match[1]](records)}\n<!-- end -->"

    pattern = rf"<!-- table ({'|'.join(tables)}) -->\n.*?<!-- end -->"
    text = re.sub(pattern, put, page.read_text(encoding="utf-8"), flags=re.DOTALL)
    temporary = page.with_name(f".{page.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, page)
