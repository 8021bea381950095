"""Why two numbers differ: their settings, ordered by usual effect, and whether the numbers may be compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tok1d.errors import InputError
from tok1d.evaluate.facts import Measured, measured, read_measured
from tok1d.evaluate.published import ABSENT, NONE, Facts, is_protocol, published
from tok1d.evaluate.settings import VERSION, rank, setting
from tok1d.zoo.record import Record, column_names, network_names

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["same", "differs", "not stated", "does not apply"]


@dataclass(frozen=True)
class Line:
    """One setting of two numbers; a side that does not state it is None."""

    key: str
    a: str | None
    b: str | None
    status: Status

    @property
    def title(self) -> str:
        return setting(self.key).title

    @property
    def reason(self) -> str:
        """Why a difference in it moves the number."""
        return setting(self.key).reason


@dataclass(frozen=True)
class Explanation:
    """Two numbers side by side; lines come in the order in which differences usually matter."""

    a: Facts
    b: Facts
    lines: list[Line]

    @property
    def differences(self) -> list[Line]:
        """The settings that differ, the one that usually matters most first."""
        return [line for line in self.lines if line.status == "differs"]

    @property
    def comparable(self) -> Literal["yes", "no", "after matching", "not known"]:
        """Whether the numbers may be compared: not across metrics, networks, references; else once settings match."""
        if self._deciding("differs") or self.a.value is None or self.b.value is None:
            return "no"
        if self._deciding("not stated"):
            return "not known"
        return "after matching" if self.differences else "yes"

    def _deciding(self, status: Status) -> list[Line]:
        return [line for line in self.lines if line.status == status and setting(line.key).decides]

    @property
    def verdict(self) -> str:
        """`comparable` as a sentence."""
        if self.comparable == "no":
            names = [line.title for line in self._deciding("differs")]
            if not names:
                missing = [facts.name for facts in (self.a, self.b) if facts.value is None]
                return f"These numbers may not be compared: {_listed(missing)} has no value."
            return f"These numbers may not be compared: they differ in {_listed(names)}."
        if self.comparable == "not known":
            return f"Not known: {_listed([line.title for line in self._deciding('not stated')])} is not stated."
        if self.comparable == "yes":
            return "These numbers may be compared: no stated setting differs."
        return "These numbers may be compared once the settings above are the same; the first ones usually matter most."

    def to_json(self) -> dict[str, object]:
        """Everything as one dictionary for JSON."""
        return {
            **{
                side: {"name": facts.name, "about": facts.about, "value": facts.value}
                for side, facts in (("a", self.a), ("b", self.b))
            },
            "settings": [
                {"setting": line.key, "title": line.title, "a": line.a, "b": line.b, "status": line.status}
                for line in self.lines
            ],
            "differ": [line.key for line in self.differences],
            "reasons": {line.key: line.reason for line in self.differences},
            "not_stated": [line.key for line in self.lines if line.status == "not stated"],
            "comparable": self.comparable,
            "verdict": self.verdict,
        }


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def compare(a: Facts, b: Facts) -> Explanation:
    """Two numbers' settings side by side."""
    keys = sorted({**a.settings, **b.settings}, key=lambda key: (rank(key), key))
    if a.sources or b.sources:  # no paper states these, and its network is the published one
        keys = [
            key
            for key in keys
            if key not in ("weights_hash", "network_hash", "tokenizer") and not key.startswith(VERSION)
        ]
    lines = [_line(key, a.settings.get(key), b.settings.get(key)) for key in keys]
    if bool(a.sources) != bool(b.sources):
        papers = [line.a if a.sources else line.b for line in lines]
        records = [line.b if a.sources else line.a for line in lines]
        same_data = not any(line.key == "data" and line.status == "differs" for line in lines)
        lines = [
            replace(line, status="not stated") if same_data and _may_be_same(line, paper, record) else line
            for line, paper, record in zip(lines, papers, records)
        ]
    return Explanation(a, b, [line for line in lines if {line.a, line.b} - {None, ABSENT, NONE}])


# A paper's words, and the splits that a record's reference may be of: test images of ImageNet are its val/.
_SPLITS = {
    "ADM statistics": ("train",),
    "ImageNet training": ("train",),
    "ImageNet validation": ("validation", "test"),
}


def _may_be_same(line: Line, paper: str | None, record: str | None) -> bool:
    """Whether the reference that a paper describes can be that of a record: its split, if known, and fingerprint."""
    if line.key != "reference" or line.status != "differs":
        return False
    splits = next((splits for words, splits in _SPLITS.items() if words in (paper or "")), None)
    split = re.search(r"\b(train|validation|test) images ", record or "")
    return splits is None or split is None or split[1] in splits


def _line(key: str, a: str | None, b: str | None) -> Line:
    status: Status = "same"
    if a is None or b is None:
        status = "not stated"
    elif ABSENT in (a, b):
        status = "same" if {a, b} <= {ABSENT, NONE} else "does not apply"
    elif a.lower() != b.lower() and not (key == "reference" and _same_images(a, b)):
        status = "not stated" if key == "data" and _only_size(a, b) else "differs"
    return Line(key, a, b, status)


def _only_size(a: str, b: str) -> bool:
    """Whether one side states only the size of its images, which is that of the other side."""
    (*named_a, size_a), (*named_b, size_b) = a.split(" "), b.split(" ")
    return size_a == size_b and not (named_a and named_b)


_IMAGES = re.compile(
    r"(?P<some>(first|spread) )?((?P<count>\d+) )?(of )?((train|validation|test|own) )?(images )?(?P<hash>\w+)"
)


def _same_images(a: str, b: str) -> bool:
    """Whether records name one reference; older ones state neither the split nor, of a whole set, the count."""
    x, y = _IMAGES.fullmatch(a), _IMAGES.fullmatch(b)
    if x is None or y is None or (x["some"], x["hash"]) != (y["some"], y["hash"]):
        return False
    return x["count"] == y["count"] or None in (x["count"], y["count"])


def explain(a: str, b: str, *, metric: str = "", keep: int | None = None) -> Explanation:
    """Compare two numbers by name: files of records, runs, models, or published protocols ("maetok/rfid").

    Args:
        metric, keep: which of several records; default: a Fréchet distance, of most tokens, that both have. Where
            networks share the name of a metric, write "label_agreement@NETWORK" or "label_agreement@NETWORK@HASH".

    Raises:
        InputError: nothing of that name, or no such record.
        DataError: a file that holds no records.
    """
    files = {name: read_measured(name) for name in (a, b) if not is_protocol(name)}
    shared = [{(r.name, r.keep) for r in file.records if r.value is not None} for file in files.values()]
    pairs = set.intersection(*shared) if shared else set()
    names = set.intersection(*({name for name, _ in each} for each in shared)) if shared else set()
    common = _Common(names, pairs)
    return compare(*(_facts(name, files.get(name), common, metric, keep) for name in (a, b)))


@dataclass(frozen=True)
class _Common:
    """Metrics, and metrics with tokens kept, that every file has."""

    names: set[str]
    pairs: set[tuple[str, int | None]]

    def preference(self, record: Record) -> tuple[bool, bool, bool, bool, int]:
        """Larger for records rather to compare: of both files, a Fréchet distance, with most tokens."""
        distance = record.name.lower().endswith("fid") or record.name.startswith("fd@")
        both = record.name in self.names, distance, (record.name, record.keep) in self.pairs
        return record.value is not None, *both, record.keep or 0


def _facts(name: str, file: Measured | None, common: _Common, metric: str, keep: int | None) -> Facts:
    if file is None:
        return published(name)
    found = [
        i
        for i, record in enumerate(file.records)
        if metric in ("", record.name, *network_names(record.name, record.network)) and keep in (None, record.keep)
    ]
    if not found:
        names = column_names((record.name, record.network) for record in file.records)
        pairs = dict.fromkeys((names[record.name, record.network], record.keep) for record in file.records)
        there = ", ".join(what if kept is None else f"{what} keep {kept}" for what, kept in pairs)
        wanted = " ".join(filter(None, (metric, "" if keep is None else f"keep {keep}")))
        raise InputError(f"{name}: no record of {wanted}; there are {there}")
    best = max(found, key=lambda i: common.preference(file.records[i]))
    return measured(file.records[best], file.name, stated=file.stated[best], recipe=file.recipe)


def table(explanation: Explanation) -> Table:
    """A rich table of the settings, one a line."""
    from rich.table import Table
    from rich.text import Text

    result = Table()
    for name in ("setting", explanation.a.name, explanation.b.name, ""):
        result.add_column(Text(name))
    result.add_row("value", *(_value(facts) for facts in (explanation.a, explanation.b)), "")
    styles = {"differs": "bold", "same": "dim", "not stated": "", "does not apply": "dim"}
    for line in explanation.lines:
        cells = (line.title, *("not stated" if cell is None else cell for cell in (line.a, line.b)), line.status)
        result.add_row(*(Text(cell) for cell in cells), style=styles[line.status])
    return result


def _value(facts: Facts) -> str:
    return "unavailable" if facts.value is None else f"{facts.value:.4g}"
