"""A grid of evaluations: one cell for each combination of settings, and a table of all records."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tok1d.config.options import options_of
from tok1d.errors import InputError
from tok1d.evaluate.job import fingerprint
from tok1d.evaluate.metric_names import lower_is_better
from tok1d.evaluate.request import Request
from tok1d.zoo.record import Record, column_names

if TYPE_CHECKING:
    from rich.table import Table

R = TypeVar("R", bound=Request)
Axes = Mapping[str, Sequence[Any]]  # the values of each setting that a grid combines


def cells_of(base: R, axes: Axes) -> list[R]:
    """Return a request for each combination of the values of the axes; the first axis changes slowest."""
    combinations = itertools.product(*axes.values())
    return [replace(base, **dict(zip(axes, values))) for values in combinations]


def varying(axes: Axes) -> list[str]:
    """Names of the axes with more than one value."""
    return [name for name, values in axes.items() if len(values) > 1]


def settings_of(request: Request) -> dict[str, object]:
    """The settings of a request that can change a result: all but locations of files and the device."""
    values = asdict(request)
    return {each.name: values[each.name] for each in options_of(type(request)) if not each.metadata.get("elsewhere")}


def cell_name(request: Request, identity: Mapping[str, object]) -> str:
    """16 hex digits: a hash of a cell's settings that are not defaults, and of its weights and images.

    An option that a later version adds with a default therefore does not change the names of finished cells.
    """
    settings, defaults = settings_of(request), {each.name: each.default for each in options_of(type(request))}
    given = {name: value for name, value in settings.items() if value != defaults[name]}
    return fingerprint({"kind": request.kind, "settings": given, "identity": identity})


def described(request: Request, names: Sequence[str]) -> str:
    """The settings of a cell as text: "guidance 1.5, steps 10"."""
    return ", ".join(f"{name.replace('_', ' ')} {_shown(getattr(request, name))}" for name in names)


@dataclass(frozen=True)
class Cell:
    """A request with its name and its records."""

    request: Request
    name: str
    records: Sequence[Record]


@dataclass(frozen=True)
class Row:
    """The metrics of one cell for one number of tokens, or as many as each image needs, named by `column_names`."""

    cell: Cell
    keep: int | str
    records: Mapping[str, Record]

    def value(self, metric: str) -> float | None:
        """The value of a metric; None if it was not measured."""
        record = self.records.get(metric)
        return None if record is None else record.value


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    """Return a row for each cell and number of tokens, without the records of the original images."""
    rows = []
    for cell in cells:
        names = column_names((record.name, record.network) for record in cell.records)
        kept: dict[int | str, dict[str, Record]] = {}
        for record in cell.records:
            keep = record.keep_text if record.keep is None else record.keep
            if keep != "":
                kept.setdefault(keep, {})[names[record.name, record.network]] = record
        rows += [Row(cell, keep, records) for keep, records in kept.items()]
    return rows


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Names of all metrics, in the order of the records."""
    return list(dict.fromkeys(name for row in rows for name in row.records))


def best_of(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows with the best value of a metric: the lowest distance or error, or the highest share, score or PSNR."""
    known = [value for row in rows if (value := row.value(metric)) is not None and value == value]
    if not known:
        return []
    best = min(known) if lower_is_better(metric) else max(known)
    return [row for row in rows if row.value(metric) == best]


def find_metric(text: str, names: Sequence[str]) -> str:
    """The metric that "fd" or "fd@inception" names; raises InputError if there are none or several of that name."""
    found = [name for name in names if name == text] or [name for name in names if name.partition("@")[0] == text]
    if len(found) != 1:
        raise InputError(f"--best: expected one of {', '.join(names)}, got {text!r}")
    return found[0]


def sorted_by(rows: Sequence[Row], metric: str) -> list[Row]:
    """Sort rows by a metric, the best value first and rows without a value last; the sort is stable."""
    sign = 1 if lower_is_better(metric) else -1

    def place(row: Row) -> tuple[bool, float]:
        value = row.value(metric)
        unknown = value is None or value != value
        return unknown, 0.0 if unknown else sign * float(value or 0)

    return sorted(rows, key=place)


def mixed(rows: Sequence[Row]) -> list[str]:
    """Metrics whose values are not comparable: the rows have different networks or references."""
    found = []
    for metric in metrics_of(rows):
        records = [row.records[metric] for row in rows if row.value(metric) is not None]
        if len({(record.network, record.reference) for record in records}) > 1:
            found.append(metric)
    return found


def table(rows: Sequence[Row], axes: Sequence[str]) -> Table:
    """A rich table of axes, number of tokens and metrics; the best value of a metric is bold and has a star."""
    from rich.table import Table
    from rich.text import Text

    metrics = metrics_of(rows)
    networks = {name.partition("@")[2] for name in metrics} - {""}
    best = {metric: best_of(rows, metric) if len(rows) > 1 else [] for metric in metrics}
    result = Table()
    for name in axes:
        result.add_column(name.replace("_", " "), justify="left" if name == "model" else "right", overflow="fold")
    for name in ("keep", *metrics):
        # `legend` names the network; if there is only one, it is left out here to keep the columns narrow.
        result.add_column(Text(name.partition("@")[0] if len(networks) == 1 else name), justify="right")
    for row in rows:
        values = [_shown(getattr(row.cell.request, name)) for name in axes]
        cells = [Text(each) for each in (*values, _shown(row.keep))]
        for metric in metrics:
            starred = any(row is each for each in best[metric])
            cells.append(Text(_number(row.value(metric)) + (" *" if starred else ""), "bold" if starred else ""))
        result.add_row(*cells)
    return result


def legend(rows: Sequence[Row]) -> str:
    """The meaning of the star for each metric, and the metrics whose values are not comparable."""
    metrics = metrics_of(rows)
    named = [f"{'lowest' if lower_is_better(name) else 'highest'} {name}" for name in metrics if best_of(rows, name)]
    text = f"* is the {', '.join(named)}" if len(rows) > 1 and named else "; ".join(metrics)
    if different := mixed(rows):
        text += f"\nnot comparable, because networks or references differ between rows: {', '.join(different)}"
    return text


def csv_text(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """The rows as comma-separated values, not rounded; a missing value is empty."""
    metrics, file = metrics_of(rows), io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["cell", *axes, "keep", *metrics])
    for row in rows:
        values = [getattr(row.cell.request, name) for name in axes]
        writer.writerow([row.cell.name, *values, row.keep, *(row.value(metric) for metric in metrics)])
    return file.getvalue()


def _json(value: object) -> object:
    """A setting for strict JSON, which has no infinity."""
    return "inf" if value == math.inf else value


def to_json(cells: Sequence[Cell], axes: Axes) -> dict[str, object]:
    """The results of a grid for strict JSON: axes, settings and records of every cell, the best of each metric."""
    rows = rows_of(cells)
    best = {
        metric: {"cell": row.cell.name, "keep": row.keep, "value": row.records[metric].to_json()["value"]}
        for metric in metrics_of(rows)
        for row in best_of(rows, metric)[:1]
    }
    return {
        "axes": {name: [_json(value) for value in values] for name, values in axes.items()},
        "best": best,
        "cells": [
            {
                "name": cell.name,
                "settings": {name: _json(value) for name, value in settings_of(cell.request).items()},
                "records": [record.to_json() for record in cell.records],
            }
            for cell in cells
        ],
    }


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "unavailable" if value is None else f"{value:.4g}"
