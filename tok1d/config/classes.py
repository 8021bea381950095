"""Names of classes: their text, the choice of classes by name or number, and the agreement of two lists of classes."""

from __future__ import annotations

import csv
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tok1d.config.nearest import nearest
from tok1d.errors import InputError

_FULL = 20  # a list of at most this many names is stated whole
_EXPECTED = "expected names, numbers or ranges of classes, such as car,2,5-7"


@dataclass(frozen=True)
class Classes:
    """The classes of a model or of images: their number, and their names in the order of their ids.

    Args:
        num: number of classes; 0 for none.
        names: empty if unknown (published weights, numbered shards, models of older versions).
        owner: what they belong to, for messages: "the model", "the images".
    """

    num: int
    names: tuple[str, ...] = ()
    owner: str = "the model"

    def __str__(self) -> str:
        """ "10: T-shirt/top, Trouser, ..., Ankle boot", or the number alone."""
        return f"{self.num}: {shortened(self.names)}" if self.names else f"{self.num}, names unknown"

    def name(self, index: int) -> str:
        """A class for messages: "car (index 0)", or "0" without names."""
        return f"{_on_one_line(self.names[index])} (index {index})" if self.names else str(index)


UNSTATED = Classes(0)


@dataclass(frozen=True)
class Agreement:
    """How the classes of images (or of a generator) correspond to those of a model.

    Args:
        agrees: whether the labels of the images are true for the model.
        places: the model's id for each class of the images; None: the ids are the same.
        said: one line for the user; "" if there is nothing to say.
    """

    agrees: bool
    places: tuple[int, ...] | None = None
    said: str = ""


def class_names(model: object) -> tuple[str, ...]:
    """The names of a model's classes, in the order of their ids; empty if they are unknown."""
    return tuple(getattr(model, "class_names", ()))


def set_class_names(model: object, names: Iterable[str]) -> None:
    """Set the names of a model's classes, if it has classes and these are names for all of them."""
    found = list(names)
    model.class_names = found if len(found) == model_classes(model).num else []  # type: ignore[attr-defined]


def model_classes(model: object) -> Classes:
    """The classes of a generator, a classifier or a class-conditional tokenizer; 0 classes for other models."""
    part = getattr(model, "spec", None) or getattr(model, "config", None)
    num = int(getattr(part, "num_classes", 0) or 0)
    names = class_names(model)
    kind = "the tokenizer" if hasattr(model, "spec") else "the generator" if hasattr(model, "sample") else "the model"
    return Classes(num, names if len(names) == num else (), kind)


def agreement(own: Classes, known: Classes) -> Agreement:
    """Compare the classes of images (`own`) with those of a model (`known`): labels are true where the names agree.

    With names on both sides every name of `own` must be one of `known`; the order may differ. Single classes always
    agree. With names missing on a side the numbers of classes must agree.
    """
    if own.names and known.names and (own.num, known.num) != (1, 1):
        places = places_of(own.names, known.names)
        if places == tuple(range(known.num)) or _normal(own.names) == _normal(known.names):
            return Agreement(True)
        if places is not None:
            return Agreement(
                True, places, f"classes: labels of {own.owner} are mapped to {known.owner}'s classes by name"
            )
        there = set(_as_folders(known.names))
        unknown = [name for name in own.names if _as_folders([name])[0] not in there]
        missing = f"{shortened(unknown, 3)} {'is' if len(unknown) == 1 else 'are'} not among"
        return Agreement(False, None, f"classes: {missing} {known.owner}'s classes ({known})")
    if own.num != known.num:
        return Agreement(False, None, f"classes: {own.owner} have {_count(own.num)}, {known.owner} has {known.num}")
    if bool(own.names) != bool(known.names) and own.num > 1:
        side = known.owner if own.names else own.owner
        return Agreement(
            True, None, f"classes: the names of {side}'s {own.num} classes are unknown and were not compared"
        )
    return Agreement(True)


def places_of(names: Sequence[str], known: Sequence[str]) -> tuple[int, ...] | None:
    """The index in `known` of each name; None if a name is not there or one occurs twice.

    Folders cannot have names with a slash, so that "T-shirt_top" is also T-shirt/top.
    """
    for written in (_normal, _as_folders):
        index = {name: i for i, name in enumerate(written(known))}
        wanted = written(names)
        if len(index) == len(known) and len(set(wanted)) == len(wanted) and index.keys() >= set(wanted):
            return tuple(index[name] for name in wanted)
    return None


def _count(num: int) -> str:
    return f"{num} class{'es' * (num != 1)}"


def _normal(names: Iterable[str]) -> list[str]:
    """Names in one Unicode form: the same name is written in two forms by different file systems."""
    return [unicodedata.normalize("NFC", name) for name in names]


def _as_folders(names: Iterable[str]) -> list[str]:
    return [name.replace("/", "_") for name in _normal(names)]


def shortened(names: Sequence[str], most: int = 5) -> str:
    """ "a, b, c", or with more than `most` names the first ones and the last one; on one line."""
    shown = [_on_one_line(name) for name in names]
    return ", ".join(shown if len(shown) <= most else [*shown[: most - 1], "...", shown[-1]])


def _on_one_line(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


def stated(names: Sequence[str]) -> str | None:
    """Names of classes as records state them: all, or of more than 20 some, their number and a hash; None without."""
    if not names:
        return None
    if len(names) <= _FULL:
        return ", ".join(names)
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{shortened(names)} ({len(names)} names, sha256 {digest})"


def chosen(wanted: str | int | Sequence[str | int], classes: Classes, what: str = "classes") -> list[int]:
    """The ids of the classes that a user names, in this order.

    Each text is a name, or a list of names, numbers and ranges LOW-HIGH separated by commas; a name with a comma is
    given alone, or in double quotes within a list. Exact names come first, then numbers, then names in another case if
    only one class has that name. A number is the class that is called so; if no class is, and not all names are
    numbers, it is the id.

    Args:
        what: the setting, for messages.

    Raises:
        InputError: nothing, a class that is not there or is named twice, or a range that is not LOW-HIGH.
    """
    found: list[int] = []
    for text in [wanted] if isinstance(wanted, str | int) else wanted:
        found += _Choice(classes, what).of(str(text))
    if not found:
        raise InputError(f"{what}: {_EXPECTED}, got nothing")
    for place, index in enumerate(found):
        if index in found[:place]:
            raise InputError(f"{what}: expected each class once, got {classes.name(index)} twice")
    return found


class _Choice:
    """Reads texts with names, numbers and ranges of classes."""

    def __init__(self, classes: Classes, what: str) -> None:
        self.classes, self.what = classes, what
        self.index: dict[str, int] = {}
        for i, name in enumerate(_normal(classes.names)):
            self.index.setdefault(name, i)
        self.numbers: dict[int, list[int]] = {}  # value of a name that is a number -> ids
        for i, name in enumerate(classes.names):
            if _is_number(name):
                self.numbers.setdefault(int(name), []).append(i)
        self.numbered = bool(classes.names) and all(map(_is_number, classes.names))

    def of(self, text: str) -> list[int]:
        for whole in _normal([text, text.strip()]):
            if whole in self.index:
                return [self.index[whole]]
        if not text.strip(" ,"):
            raise InputError(f"{self.what}: {_EXPECTED}, got {text!r}")
        try:
            (parts,) = csv.reader([text], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError):
            raise InputError(f"{self.what}: {_EXPECTED}, got {text!r}") from None
        if not all(part.strip() for part in parts):
            raise InputError(f"{self.what}: {_EXPECTED}, got nothing between commas in {text!r}")
        return [index for part in parts for index in self._part(part.strip())]

    def _part(self, text: str) -> list[int]:
        if (exact := self.index.get(_normal([text])[0])) is not None:
            return [exact]
        if _is_number(text):
            return [self._number(int(text))]
        if re.fullmatch(r"[0-9]{1,9}\s*-\s*[0-9]{1,9}", text):
            return self._range(text)
        folded = [i for i, name in enumerate(self.classes.names) if name.casefold() == text.casefold()]
        if len(folded) == 1:
            return folded
        if folded:
            several = " or ".join(_on_one_line(self.classes.names[i]) for i in folded)
            raise InputError(f"{self.what}: {text!r} may be {several}; expected the exact name")
        raise InputError(f"{self.what}: {self._expected()}, got {text!r}{self._nearest(text)}")

    def _number(self, number: int) -> int:
        called = self.numbers.get(number, [])
        if len(called) == 1:
            return called[0]
        if len(called) > 1:
            several = " or ".join(_on_one_line(self.classes.names[i]) for i in called)
            raise InputError(f"{self.what}: {number} may be {several}; expected the exact name")
        if self.numbered or number >= self.classes.num:
            raise InputError(f"{self.what}: {self._expected()}, got {number}{self._nearest(str(number))}")
        return number

    def _range(self, text: str) -> list[int]:
        low, high = (int(part) for part in text.split("-"))
        if low > high:
            raise InputError(f"{self.what}: expected a range LOW-HIGH such as {high}-{low}, got {text!r}")
        self._number(low)  # both ends exist, before a long range is gone through
        self._number(high)
        if high - low >= self.classes.num and not self.numbered:
            raise InputError(f"{self.what}: {self._expected()}, got the range {text!r}")
        if self.numbered:  # the classes called so: a gap in the names is no mistake of the user's
            return [self._number(number) for number in sorted(self.numbers) if low <= number <= high]
        return [self._number(number) for number in range(low, high + 1)]

    def _expected(self) -> str:
        names = self.classes.names
        if not names:
            return f"expected numbers in 0..{self.classes.num - 1}" if self.classes.num else "expected no classes"
        numbers = "" if self.numbered else f", or numbers in 0..{len(names) - 1}"
        return f"expected classes of {len(names)}: {shortened(names, _FULL)}{numbers}"

    def _nearest(self, text: str) -> str:
        near = [_on_one_line(name) for name in nearest(text, self.classes.names)[:3]]
        return f"; did you mean {' or '.join(near)}?" if near else ""


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def drawn(indices: Sequence[int], classes: Classes) -> str:
    """One line about the classes of samples: "classes: 2 (index 4), car (index 0)", shortened beyond 20."""
    shown = [classes.name(index) for index in indices]
    return f"classes: {shortened(shown, _FULL)}"
