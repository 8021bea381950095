"""Comparison of two measured numbers: the settings in which they differ, and whether they can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tok1d.config.differing import GENERIC_DATA, differences
from tok1d.data.prints import kind_of_print
from tok1d.errors import InputError
from tok1d.evaluate.facts import Measured, measured, read_measured
from tok1d.evaluate.metric_names import PAIRS
from tok1d.evaluate.published import ABSENT, NONE, Facts, is_protocol, published, text_of
from tok1d.evaluate.settings import VERSION, rank, setting
from tok1d.zoo.record import BASELINE, Record, column_names, network_names

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["same", "differs", "not stated", "does not apply"]
OF_CROPS = "fingerprints of images depend on the crop, which differs; the images themselves may be the same"


@dataclass(frozen=True)
class Line:
    """One setting of two numbers, `a` and `b`, as text; None if the number's source does not state it.

    Args:
        why: why this difference matters, where it is not what the setting's own reason says.
    """

    key: str
    a: str | None
    b: str | None
    status: Status
    why: str = ""

    @property
    def title(self) -> str:
        """The name of the setting in tables."""
        return setting(self.key).title

    @property
    def reason(self) -> str:
        """Why a difference in this setting changes the number."""
        return setting(self.key).reason

    def reason_for(self, metric: str) -> str:
        """`reason` for a metric: that of images and their originals has reasons of its own."""
        found = setting(self.key)
        return self.why or (found.of_pairs if found.of_pairs and metric in PAIRS else found.reason)


@dataclass(frozen=True)
class Explanation:
    """Two numbers and their settings; `lines` is sorted by the usual effect of a difference, largest first."""

    a: Facts
    b: Facts
    lines: list[Line]

    @property
    def differences(self) -> list[Line]:
        """The settings that differ, the one with the largest usual effect first."""
        return [line for line in self.lines if line.status == "differs"]

    @property
    def metric(self) -> str:
        """The metric of both numbers, without its network; "" if they are of two metrics."""
        names = {str(facts.settings.get("metric")).partition("@")[0] for facts in (self.a, self.b)}
        return names.pop() if len(names) == 1 else ""

    @property
    def comparable(self) -> Literal["yes", "no", "after matching", "not known"]:
        """Whether the numbers can be compared.

        "no": metric, data, feature network, reference or crop differ, or a number has no value. "not known": one of
        these is not stated. "after matching": only other settings differ. "yes": no stated setting differs.
        """
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
                return f"These numbers cannot be compared: {_listed(missing)} has no value."
            return f"These numbers cannot be compared: they differ in {_listed(names)}."
        if self.comparable == "not known":
            names = [line.title for line in self._deciding("not stated")]
            return f"Not known whether these numbers can be compared: {_listed(names)} not stated."
        if self.comparable == "yes":
            return "These numbers can be compared: no stated setting differs."
        return (
            "These numbers can be compared once the settings above are equal; the first ones usually have most effect."
        )

    def to_json(self) -> dict[str, object]:
        """Return the explanation as a dictionary for JSON."""
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
            "reasons": {line.key: line.reason_for(self.metric) for line in self.differences},
            "not_stated": [line.key for line in self.lines if line.status == "not stated"],
            "comparable": self.comparable,
            "verdict": self.verdict,
        }


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def compare(a: Facts, b: Facts) -> Explanation:
    """Compare the settings of two numbers."""
    keys = sorted({**a.settings, **b.settings}, key=lambda key: (rank(key), key))
    if a.sources or b.sources:  # no paper states these settings
        keys = [
            key
            for key in keys
            if key not in ("weights_hash", "network_hash", "tokenizer") and not key.startswith(VERSION)
        ]
    lines = [_line(key, a, b) for key in keys]
    lines = sorted([*lines, *_training_lines(a, b)], key=lambda line: (rank(line.key), line.key))
    if bool(a.sources) != bool(b.sources):
        paper, record = (a, b) if a.sources else (b, a)
        same_data = not any(line.key == "data" and line.status == "differs" for line in lines)
        lines = [
            replace(line, status="not stated") if same_data and _may_be_same(line, paper, record) else line
            for line in lines
        ]
    return Explanation(a, b, [line for line in lines if {line.a, line.b} - {None, ABSENT, NONE}])


# Words in a paper's reference, and the split that a record states for such images: ImageNet's val/ may be "test".
_SPLITS = {
    "ADM statistics": ("train",),
    "ImageNet training": ("train",),
    "ImageNet validation": ("validation", "test"),
}


def _may_be_same(line: Line, paper: Facts, record: Facts) -> bool:
    """Whether a record's reference can be the one that a paper describes: the same split, as far as both state it."""
    if line.key != "reference" or line.status != "differs":
        return False
    splits = next((splits for words, splits in _SPLITS.items() if words in (paper.settings["reference"] or "")), None)
    of = record.reference.of if record.reference is not None else ""
    return splits is None or of in ("", "own") or of in splits


def _line(key: str, facts_a: Facts, facts_b: Facts) -> Line:
    a, b = facts_a.settings.get(key), facts_b.settings.get(key)
    status: Status = "same"
    if key == "data" and a == b and a is not None and _other_images(facts_a, facts_b):
        return Line(key, f"{a} images {facts_a.data_print}", f"{b} images {facts_b.data_print}", "differs")
    if a is None or b is None:
        status = "not stated"
    elif ABSENT in (a, b):
        status = "same" if {a, b} <= {ABSENT, NONE} else "does not apply"
    elif a.lower() != b.lower() and not (key == "reference" and _same_images(facts_a, facts_b)):
        status = "not stated" if key == "data" and _only_size(a, b) else "differs"
    why = OF_CROPS if key == "reference" and status == "differs" and _other_crops(facts_a, facts_b) else ""
    return Line(key, a, b, status, why)


# Settings of a recipe that other lines or the record state.
_STATED = {"data.name", "data.image_size", "data.pad", "data.num_images", "seed", "tokenizer", "model.statistics"}
_STATED |= {"train.ema", "train.batch_size", "train.accumulate", "train.steps"}
_FRAMING = ("image_size", "channels", "crop", "pad", "background")  # keys of data that its fingerprint depends on


def _training_lines(a: Facts, b: Facts) -> list[Line]:
    """A line for each setting of the two models' trainings that differs, except those that the numbers state."""
    if not (a.trained and b.trained):
        return []
    found = differences(a.trained, b.trained)
    return [Line(key, text_of(x), text_of(y), "differs") for key, (x, y) in found.items() if key not in _STATED]


def _other_images(a: Facts, b: Facts) -> bool:
    """Whether two models were trained on other images, by fingerprints that see the same."""
    framings = [[_section(facts, "data").get(key) for key in _FRAMING] for facts in (a, b)]
    names = {_section(facts, "data").get("name") for facts in (a, b)}
    known = a.data_print and b.data_print and kind_of_print(a.data_print) == kind_of_print(b.data_print)
    return bool(known) and names <= {*GENERIC_DATA} and framings[0] == framings[1] and a.data_print != b.data_print


def _section(facts: Facts, key: str) -> Mapping[str, object]:
    found = facts.trained.get(key)
    return found if isinstance(found, Mapping) else {}


def _same_images(a: Facts, b: Facts) -> bool:
    """Whether two records can have the same reference."""
    return a.reference is not None and b.reference is not None and a.reference.may_equal(b.reference)


def _other_crops(a: Facts, b: Facts) -> bool:
    """Whether two references differ in nothing but fingerprints, which depend on crops that differ."""
    crops = {a.settings.get("crop"), b.settings.get("crop")}
    sets = [each.reference and replace(each.reference, fingerprint="") for each in (a, b)]
    return len(crops) == 2 and None not in crops and None not in sets and sets[0] == sets[1]


def _only_size(a: str, b: str) -> bool:
    """Whether both sides state the same image size, and only one of them the name of the data set."""
    (*named_a, size_a), (*named_b, size_b) = a.split(" "), b.split(" ")
    return size_a == size_b and not (named_a and named_b)


def explain(a: str, b: str, *, metric: str = "", keep: int | None = None) -> Explanation:
    """Compare two numbers, each given by a file of records, a run, a model, or a published protocol ("maetok/rfid").

    Args:
        metric, keep: metric and number of tokens of the record to compare, if there are several; default: a Fréchet
            distance that both numbers have, from the most tokens. If several networks measured a metric, write
            "label_agreement@NETWORK" or "label_agreement@NETWORK@HASH".

    Raises:
        InputError: no file, model or protocol has that name, or no record fits.
        DataError: a file without records.
    """
    files = {name: read_measured(name) for name in (a, b) if not is_protocol(name)}
    shared = [{(r.name, r.keep) for r in file.records if r.value is not None} for file in files.values()]
    pairs = set.intersection(*shared) if shared else set()
    names = set.intersection(*({name for name, _ in each} for each in shared)) if shared else set()
    common = _Common(names, pairs)
    return compare(*(_facts(name, files.get(name), common, metric, keep) for name in (a, b)))


@dataclass(frozen=True)
class _Common:
    """The names of the metrics, and the pairs of metric and number of tokens, that all files have."""

    names: set[str]
    pairs: set[tuple[str, int | None]]

    def preference(self, record: Record) -> tuple[bool, bool, bool, bool, int]:
        """Sort key; the largest is compared: a metric that all files have, a Fréchet distance, from the most tokens."""
        distance = record.name.lower().endswith("fid") or record.name.startswith("fd@")
        both = record.name in self.names, distance, (record.name, record.keep) in self.pairs
        return record.value is not None and not record.name.startswith(BASELINE), *both, record.keep or 0


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
    stated, of_model = file.stated[best], {"recipe": file.recipe, "data_print": file.data_print}
    return measured(file.records[best], file.name, stated=stated, **of_model)  # type: ignore[arg-type]


def table(explanation: Explanation) -> Table:
    """Return a rich table with one row for each setting."""
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
