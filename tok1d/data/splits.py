"""Which images of a set are for testing, where the set itself does not say."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Literal, TypeVar

T = TypeVar("T")
Split = Literal["train", "test"]
TEST_PERCENT = 5
TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "val", "validation", "valid", "eval")


def is_test(name: str) -> bool:
    """Whether an image of that name is one of the 5 % for testing: by a hash, so it stays when others come or go."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % 100 < TEST_PERCENT


def split_folders(names: Iterable[str]) -> tuple[str, str] | None:
    """Those of a set's folders that hold its training and its test images, by their names; None without both."""
    found = set(names)
    train = next((name for name in TRAIN_NAMES if name in found), None)
    test = next((name for name in TEST_NAMES if name in found), None)
    return None if train is None or test is None else (train, test)


def part_of(paths: Sequence[str], split: Split) -> tuple[list[str], bool]:
    """The files of a split, and whether their names told: "train" and "test" or "val" as a word of name or folder.

    Where not every file tells, or all tell the same, all are returned: samples are then drawn by `is_test`.
    """
    kinds = [_kind(path) for path in paths]
    if None in kinds or len(set(kinds)) < 2:
        return list(paths), False
    return [path for path, kind in zip(paths, kinds) if kind == split], True


def _kind(path: str) -> Split | None:
    for part in reversed(PurePath(path).parts[-2:]):  # the name before its folder
        words = re.split(r"[^a-z]+", part.lower())
        if any(word in words for word in TEST_NAMES):
            return "test"
        if any(word in words for word in TRAIN_NAMES):
            return "train"
    return None


def spread(rows: Sequence[T], limit: int | None) -> list[T]:
    """So many of the rows, evenly spread over them; None is all."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]
