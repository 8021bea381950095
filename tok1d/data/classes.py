"""Class names: their order, and class numbers of shards and saved data sets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Literal

from tok1d.errors import DataError

ClassOrder = Literal["sorted", "natural"]
MAX_CLASSES = 1_000_000  # more are taken for a mistake, such as a hash or an identifier in place of a class


def class_name(folder: str) -> str:
    """Return the name of a folder's class: in one Unicode form, as file systems write a name in two forms."""
    return unicodedata.normalize("NFC", folder)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sorting key that puts the numbers in names in numerical order: 2 before 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts if part]


def ordered(names: Collection[str], order: ClassOrder) -> list[str]:
    """Return class names in the order of their numbers: by code points ("sorted"), or natural."""
    return sorted(sorted(names), key=natural) if order == "natural" else sorted(names)


def order_note(names: Sequence[str]) -> list[str]:
    """Return a line on class names that differ in a number, as 2 and 10, and are not in its order, if there are any."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        if found := re.fullmatch(r"([^0-9]*)([0-9]+)([^0-9]*)", name):
            groups.setdefault((found[1], found[3]), []).append(int(found[2]))
    if all(numbers == sorted(numbers) for numbers in groups.values()):
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"classes in order: {shown} (data.class_order=natural puts numbers in numerical order)"]


def check_number(highest: int, where: str) -> None:
    """Raise DataError if the highest class number is beyond `MAX_CLASSES`; `where` names its sample."""
    if highest >= MAX_CLASSES:
        raise DataError(
            f"{where}: class {highest}: expected a number below {MAX_CLASSES:,}: is it an identifier? Number the "
            "classes from 0"
        )


def numbers_note(numbers: Collection[int]) -> list[str]:
    """Return a line on class numbers that do not begin at 0 or have gaps, if there are any."""
    found, highest = set(numbers), max(numbers)
    if len(found) == highest + 1:
        return []
    zero = "" if 0 in found else ", none is 0"
    text = f"class numbers {min(found)} to {highest}, {len(found):,} of them{zero}"
    return [f"{text}: model.num_classes must be {highest + 1}"]
