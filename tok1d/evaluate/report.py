"""Tables of metric records, for terminals and HTML pages."""

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tok1d.zoo.record import Record

if TYPE_CHECKING:
    from rich.table import Table


def _value(record: Record) -> str:
    if record.value is None:
        return "unavailable"
    return f"{record.value:.4g} {record.unit}".rstrip()


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _model(record: Record) -> str:
    return " ".join(filter(None, (record.weights, record.precision, record.weights_hash)))


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.versions.items())


_COLUMNS: dict[str, Callable[[Record], str]] = {
    "metric": lambda r: r.name,
    "value": _value,
    "images": lambda r: str(r.num_images),
    "classes": lambda r: _text(r.classes),
    "label": lambda r: _text(r.label),
    "keep": lambda r: r.keep_text,
    "sampler": lambda r: r.sampler_text,
    "steps": lambda r: _text(r.decoder_steps),
    "guidance": lambda r: r.guidance_text,
    "weights": _model,
    "network": lambda r: _text(r.network),
    "rounding": lambda r: _text(r.rounding),
    "reference": lambda r: _text(r.reference),
    "tokenizer": lambda r: _text(r.tokenizer),
    "crop": lambda r: _text(r.crop),
    "seed": lambda r: _text(r.seed),
    "note": lambda r: r.note,
    "versions": _versions,
}
LONG = 60  # characters of a note that a table has only once
_NUMBERS = ("value", "images", "keep", "steps", "guidance", "seed")


def _grid(records: Sequence[Record]) -> dict[str, list[str]]:
    """Columns of cells by name, without the columns that are empty for all records."""
    cells = {name: [cell(record) for record in records] for name, cell in _COLUMNS.items()}
    return {name: column for name, column in cells.items() if any(column) or name in ("metric", "value")}


def _shared(grid: dict[str, list[str]]) -> dict[str, str]:
    """Columns in which all cells that are not empty are equal."""
    own = ("metric", "value", "keep", "note")
    return {
        name: max(cells)
        for name, cells in grid.items()
        if name not in own and len(cells) > 1 and len({*cells} - {""}) == 1
    }


def shared_protocol(records: Sequence[Record]) -> str:
    """The settings that all records share, as one line of text; `table` leaves them out."""
    grid = _grid(records)
    grid.pop("versions", None)
    return "; ".join(f"{name} {cell}" for name, cell in _shared(grid).items())


def table(records: Sequence[Record]) -> "Table":
    """A rich table with one record in each row, without the settings of `shared_protocol` and without versions."""
    from rich.table import Table
    from rich.text import Text

    grid = _grid(records)
    grid.pop("versions", None)
    shared = _shared(grid)
    result = Table()
    columns = {name: cells for name, cells in grid.items() if name not in shared}
    if "note" in columns:
        columns["note"] = _once(columns["note"])
    for name in columns:
        result.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for row in zip(*columns.values()):
        # Text instead of str: rich would read a name such as "[red]" as markup.
        result.add_row(*(Text(cell) for cell in row))
    return result


def _once(notes: Sequence[str]) -> list[str]:
    """Notes of which a long one that stands in an earlier row is "as above"."""
    return ["as above" if len(note) > LONG and note in notes[:i] else note for i, note in enumerate(notes)]


def html_table(records: Sequence[Record]) -> str:
    """An HTML `<table class="records">` of the records; all cells are escaped."""
    grid = _grid(records)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in grid)
    rows = [
        "<tr>" + "".join(_html_cell(name, cell) for name, cell in zip(grid, row)) + "</tr>"
        for row in zip(*grid.values())
    ]
    body = "\n".join(rows)
    return f'<table class="records">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'


def _html_cell(name: str, cell: str) -> str:
    kind = ' class="number"' if name in _NUMBERS else ""
    return f"<td{kind}>{html.escape(cell)}</td>"
