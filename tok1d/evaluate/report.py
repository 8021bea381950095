"""Numbers that carry their protocol: metric records, their file, and tables of them."""

import contextlib
import html
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tok1d.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table


def versions() -> dict[str, str]:
    """Versions of tok1d, torch, numpy and python that measure here."""
    found = {}
    for package in ("tok1d", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"  # used from a source tree that was never installed
    return found | {"python": platform.python_version()}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number and how it was measured; a field that does not apply is None.

    Raises ValueError for a metric named after another network than the one it was measured with: "fid" (also "rfid",
    "gfid", "sfid"), "kid" and "inception_score" are kept for the published Inception graph, every other Frechet
    distance is `fd@<network>`.
    """

    name: str
    value: float | None  # None: unavailable, for the reason in `note`
    unit: str = ""
    num_images: int
    network: str | None = None  # feature network, name@hash
    reference: str | None = None  # fingerprint of the images or statistics compared with
    crop: str | None = None
    rounding: str | None = None  # of the images before the feature network, such as "rounded to 8 bits"
    classes: str | None = None  # how the samples' classes were drawn: balanced, uniformly random, as in training
    tokenizer: str | None = None  # weights hash of the tokenizer that decoded samples
    label: str | None = None  # "true" or "null": the class that a tokenizer which wants one was given
    keep: int | None = None  # tokens decoded
    sampler: str | None = None
    steps: int | None = None
    guidance: float | str | None = None  # a scale, or a scale with its interval or schedule
    weights: str | None = None  # "ema" or "raw"
    precision: str | None = None
    seed: int | None = None
    weights_hash: str | None = None
    versions: dict[str, str] = field(default_factory=versions, hash=False)
    note: str = ""

    def __post_init__(self) -> None:
        network = self.network.partition("@")[0] if self.network else None
        published = self.name.lower().endswith("fid") or self.name.lower() in ("kid", "inception_score")
        if published and network != "inception":
            raise ValueError(f"'{self.name}' is measured with the network 'inception', found {network!r}")
        if self.name.startswith("fd@") and self.name != f"fd@{network}":
            raise ValueError(f"'{self.name}' is named after another network than its own, {network!r}")
        if self.weights not in ("ema", "raw", None):
            raise ValueError(f"weights is 'ema' or 'raw', found {self.weights!r}")
        if self.label not in ("true", "null", None):
            raise ValueError(f"label is 'true' or 'null', found {self.label!r}")
        if self.num_images < 0:
            raise ValueError(f"num_images is a count, found {self.num_images}")
        if self.value is None and not self.note:
            raise ValueError(f"'{self.name}' has no value: its note must say why")

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for strict JSON; an infinite or undefined value becomes a string."""
        content = asdict(self)
        if self.value is not None:
            value = float(self.value)
            content["value"] = value if math.isfinite(value) else str(value)
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Record":
        """The record of `to_json`'s dictionary; raises TypeError or ValueError where it is not one."""
        value = content.get("value")
        return cls(**content | {"value": None if value is None else float(value)})


def column_names(measured: Iterable[tuple[str, str | None]]) -> dict[tuple[str, str | None], str]:
    """What to call each metric and network, (name, "name@hash"): the metric's name where only one network has it.

    Else "label_agreement@cnn", and "label_agreement@cnn@ab12" or "fd@cnn@ab12" where networks of other weights are
    called the same.
    """
    pairs = dict.fromkeys(measured)
    names = Counter(name for name, _ in pairs)
    longer = {pair: network_names(*pair)[0] for pair in pairs}
    taken = Counter(longer.values())
    return {
        pair: pair[0] if names[pair[0]] == 1 else longer[pair] if taken[longer[pair]] == 1 else network_names(*pair)[1]
        for pair in pairs
    }


def network_names(name: str, network: str | None) -> tuple[str, str]:
    """A metric's name with its network's, without and with the hash; those of no network stay as they are."""
    if network is None:
        return name, name
    metric = name.partition("@")[0]
    return f"{metric}@{network.partition('@')[0]}", f"{metric}@{network}"


def frechet_name(network: str) -> str:
    """Name of a Frechet distance on the features of `network` ("name" or "name@hash"): `fd@name`."""
    return f"fd@{network.partition('@')[0]}"


def write_records(path: str | Path, records: Sequence[Record]) -> None:
    """Write records as a JSON list; `path` holds the old content or the whole new one, never a part."""
    path = Path(path)
    text = json.dumps([record.to_json() for record in records], indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"a writable place for records is expected, found {path}: {reason}; choose another folder or free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or never made
            temporary.unlink()


def read_records(path: str | Path) -> list[Record]:
    """Records from a file of `write_records`; raises DataError where it is missing or holds something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise TypeError("no list")
        return [Record.from_json(entry) for entry in content]
    except OSError as error:
        raise DataError(
            f"a file of records is expected at {path}, found: {error.strerror or error}; evaluate the model first"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"a JSON list of metric records is expected in {path}, found something else ({error}); evaluate again"
        ) from error


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
    "keep": lambda r: _text(r.keep),
    "sampler": lambda r: _text(r.sampler),
    "steps": lambda r: _text(r.steps),
    "guidance": lambda r: _text(r.guidance),
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
_NUMBERS = ("value", "images", "keep", "steps", "guidance", "seed")


def _grid(records: Sequence[Record]) -> dict[str, list[str]]:
    """Columns of cells, without the columns in which no record says anything."""
    cells = {name: [cell(record) for record in records] for name, cell in _COLUMNS.items()}
    return {name: column for name, column in cells.items() if any(column) or name in ("metric", "value")}


def _shared(grid: dict[str, list[str]]) -> dict[str, str]:
    """Columns in which every record that says anything says the same."""
    own = ("metric", "value", "keep", "note")
    return {
        name: max(cells)
        for name, cells in grid.items()
        if name not in own and len(cells) > 1 and len({*cells} - {""}) == 1
    }


def shared_protocol(records: Sequence[Record]) -> str:
    """What all records have in common, as one line of text; `table` leaves it out."""
    grid = _grid(records)
    grid.pop("versions", None)
    return "; ".join(f"{name} {cell}" for name, cell in _shared(grid).items())


def table(records: Sequence[Record]) -> "Table":
    """A rich table for terminals, one record a row, without what they share (`shared_protocol`) and versions."""
    from rich.table import Table
    from rich.text import Text

    grid = _grid(records)
    grid.pop("versions", None)
    shared = _shared(grid)
    result = Table()
    columns = {name: cells for name, cells in grid.items() if name not in shared}
    for name in columns:
        result.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for row in zip(*columns.values()):
        # Text, not str: a name such as "[red]" is shown, not read as markup.
        result.add_row(*(Text(cell) for cell in row))
    return result


def html_table(records: Sequence[Record]) -> str:
    """An HTML `<table class="records">` of the records with every cell escaped."""
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
