"""A grid of evaluations: lists of settings make cells, cells have records, records make one table."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tok1d.errors import InputError
from tok1d.evaluate.job import fingerprint
from tok1d.evaluate.measures import lower_is_better
from tok1d.zoo.record import Record, column_names

if TYPE_CHECKING:
    from rich.table import Table

Parse = Callable[[str, str], list[Any]]
R = TypeVar("R")
ELSEWHERE = ("data_root", "device")  # words of a request that no number should depend on


def number_list(low: float, high: float | None = None, *, whole: bool = False) -> Parse:
    """A parser of "1,1.5,2" as numbers in low..high; its second argument is the option's name for messages."""

    def parse(text: str, what: str) -> list[Any]:
        kind = "whole numbers" if whole else "numbers"
        span = f"from {low:g}" if high is None else f"in {low:g}..{high:g}"
        found: list[Any] = []
        for part in word_list(text, what):
            try:
                value = int(part) if whole else float(part)
            except ValueError:
                value = low - 1
            if not (math.isfinite(value) and low <= value <= (value if high is None else high)):
                raise InputError(f"{what}: expected {kind} {span} separated by commas, got {part!r}")
            found.append(value)
        return _once(found)

    return parse


def word_list(text: str, what: str) -> list[Any]:
    """ "euler,heun" as words; InputError where one is empty."""
    words = [part.strip() for part in text.split(",")]
    if not all(words):
        raise InputError(f"{what}: expected values separated by commas, got {text!r}")
    return _once(words)


def interval_list(text: str, what: str) -> list[Any]:
    """ "0:1,0.2:0.8" as intervals in the words of an evaluation, "0,1" and "0.2,0.8"."""
    found = word_list(text, what)
    for part in found:
        if part.count(":") != 1:
            raise InputError(f"{what}: expected intervals such as 0:1,0.2:0.8, got {part!r}")
    return [part.replace(":", ",") for part in found]


def _once(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


# Fields of a request that a list of values may be given for, in the order in which cells run: the last changes fastest.
AXES: dict[str, Parse] = {
    "sampler": word_list,
    "solver": word_list,
    "steps": number_list(1, whole=True),
    "guidance_schedule": word_list,
    "guidance_interval": interval_list,
    "guidance": number_list(0),
    "temperature": number_list(0),
    "top_k": number_list(0, whole=True),
    "top_p": number_list(0, 1),
    "label": word_list,
    "decoder_solver": word_list,
    "decoder_steps": number_list(1, whole=True),
    "decoder_guidance": number_list(0),
}


def option(name: str) -> str:
    """How the command line writes a field: top_k is --top-k."""
    return f"--{name.replace('_', '-')}"


def parse_axes(texts: Mapping[str, str]) -> dict[str, list[Any]]:
    """Options' texts as axes, those that are given; InputError where one is no list of such values."""
    return {name: parse(texts[name], option(name)) for name, parse in AXES.items() if texts.get(name)}


def cells_of(base: R, axes: Mapping[str, Sequence[Any]]) -> list[R]:
    """A request for every combination of the axes' values; the first axis changes slowest."""
    combinations = itertools.product(*axes.values())
    return [replace(base, **dict(zip(axes, values))) for values in combinations]  # type: ignore[type-var]


def varying(axes: Mapping[str, Sequence[Any]]) -> list[str]:
    """The axes with more than one value."""
    return [name for name, values in axes.items() if len(values) > 1]


def settings_of(request: Any) -> dict[str, Any]:
    """A request's words, without where files and processors are."""
    return {name: value for name, value in asdict(request).items() if name not in ELSEWHERE}


def cell_name(request: Any, identity: Mapping[str, Any]) -> str:
    """16 hex digits of a cell's settings and of the weights and images that it is measured with."""
    return fingerprint({"kind": request.kind, "settings": settings_of(request), "identity": identity})


def described(request: Any, names: Sequence[str]) -> str:
    """A cell in words: "guidance 1.5, steps 10"."""
    return ", ".join(f"{name.replace('_', ' ')} {_shown(getattr(request, name))}" for name in names)


@dataclass(frozen=True)
class Cell:
    """A request with its name and its records."""

    request: Any
    name: str
    records: Sequence[Record]


@dataclass(frozen=True)
class Row:
    """What one cell measured of the images from one number of tokens, by metric as `column_names` calls it."""

    cell: Cell
    keep: int | None
    records: Mapping[str, Record]

    def value(self, metric: str) -> float | None:
        record = self.records.get(metric)
        return None if record is None else record.value


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    """A row a cell and number of tokens; records of the originals, which keep none, are left out."""
    rows = []
    for cell in cells:
        names = column_names((record.name, record.network) for record in cell.records)
        kept: dict[int, dict[str, Record]] = {}
        for record in cell.records:
            if record.keep is not None:
                kept.setdefault(record.keep, {})[names[record.name, record.network]] = record
        rows += [Row(cell, keep, records) for keep, records in kept.items()]
    return rows


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Names of all metrics, in the order of the records."""
    return _once(name for row in rows for name in row.records)


def best_of(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows with the best value of a metric: the lowest distance or error, or the highest share, score or PSNR."""
    known = [value for row in rows if (value := row.value(metric)) is not None and value == value]
    if not known:
        return []
    best = min(known) if lower_is_better(metric) else max(known)
    return [row for row in rows if row.value(metric) == best]


def find_metric(text: str, names: Sequence[str]) -> str:
    """The metric that "fd" or "fd@inception" names; InputError where it is none or one of several."""
    found = [name for name in names if name == text] or [name for name in names if name.partition("@")[0] == text]
    if len(found) != 1:
        raise InputError(f"--best: expected one of {', '.join(names)}, got {text!r}")
    return found[0]


def sorted_by(rows: Sequence[Row], metric: str) -> list[Row]:
    """The best first, those without a value last, equal ones in their order."""
    sign = 1 if lower_is_better(metric) else -1

    def place(row: Row) -> tuple[bool, float]:
        value = row.value(metric)
        unknown = value is None or value != value
        return unknown, 0.0 if unknown else sign * float(value or 0)

    return sorted(rows, key=place)


def mixed(rows: Sequence[Row]) -> list[str]:
    """Metrics whose rows were measured by different networks, or compared with different references."""
    found = []
    for metric in metrics_of(rows):
        records = [row.records[metric] for row in rows if row.value(metric) is not None]
        if len({(record.network, record.reference) for record in records}) > 1:
            found.append(metric)
    return found


def table(rows: Sequence[Row], axes: Sequence[str]) -> Table:
    """A rich table: the axes that vary, tokens kept, metrics; the best of every metric in bold with a star."""
    from rich.table import Table
    from rich.text import Text

    metrics = metrics_of(rows)
    networks = {name.partition("@")[2] for name in metrics} - {""}
    best = {metric: best_of(rows, metric) if len(rows) > 1 else [] for metric in metrics}
    result = Table()
    for name in axes:
        result.add_column(name.replace("_", " "), justify="left" if name == "model" else "right", overflow="fold")
    for name in ("keep", *metrics):
        # With a single network, which `legend` names, its name would only widen each column.
        result.add_column(Text(name.partition("@")[0] if len(networks) == 1 else name), justify="right")
    for row in rows:
        told = [_shown(getattr(row.cell.request, name)) for name in axes]
        cells = [Text(each) for each in (*told, _shown(row.keep))]
        for metric in metrics:
            starred = any(row is each for each in best[metric])
            cells.append(Text(_number(row.value(metric)) + (" *" if starred else ""), "bold" if starred else ""))
        result.add_row(*cells)
    return result


def legend(rows: Sequence[Row]) -> str:
    """What the star means for each metric, and which metrics' rows should not be compared."""
    metrics = metrics_of(rows)
    named = [f"{'lowest' if lower_is_better(name) else 'highest'} {name}" for name in metrics if best_of(rows, name)]
    text = f"* is the {', '.join(named)}" if len(rows) > 1 and named else "; ".join(metrics)
    if different := mixed(rows):
        text += f"\nnot of one network or reference in all rows, so mind what is compared: {', '.join(different)}"
    return text


def csv_text(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """The rows as comma-separated values, unrounded; a value that is not there is empty."""
    metrics, file = metrics_of(rows), io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["cell", *axes, "keep", *metrics])
    for row in rows:
        told = [getattr(row.cell.request, name) for name in axes]
        writer.writerow([row.cell.name, *told, row.keep, *(row.value(metric) for metric in metrics)])
    return file.getvalue()


def to_json(cells: Sequence[Cell], axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """All that a grid found, for strict JSON: its axes, every cell's settings and records, the best of each metric."""
    rows = rows_of(cells)
    best = {
        metric: {"cell": row.cell.name, "keep": row.keep, "value": row.records[metric].to_json()["value"]}
        for metric in metrics_of(rows)
        for row in best_of(rows, metric)[:1]
    }
    return {
        "axes": {name: list(values) for name, values in axes.items()},
        "best": best,
        "cells": [
            {
                "name": cell.name,
                "settings": settings_of(cell.request),
                "records": [record.to_json() for record in cell.records],
            }
            for cell in cells
        ],
    }


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "unavailable" if value is None else f"{value:.4g}"
