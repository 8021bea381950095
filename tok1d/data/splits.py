"""The split of a data set into training and test images."""

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
    """Whether an image belongs to the 5 % for testing of a set without splits of its own.

    Decided by a hash of its name, so it does not change when other images are added or removed.
    """
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % 100 < TEST_PERCENT


def split_folders(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the names of the training and the test folder among `names`; None unless both are there."""
    found = set(names)
    train = next((name for name in TRAIN_NAMES if name in found), None)
    test = next((name for name in TEST_NAMES if name in found), None)
    return None if train is None or test is None else (train, test)


def part_of(paths: Sequence[str], split: Split) -> tuple[list[str], bool]:
    """Return the files of a split, and whether their names determine the split.

    A file belongs to a split if "train", or "test" or "val", is a word of its name, or else of its folder's name. If
    this does not assign every file, or finds only one split, all files are returned, and `is_test` has to decide for
    each sample.
    """
    kinds = [_kind(path) for path in paths]
    if None in kinds or len(set(kinds)) < 2:
        return list(paths), False
    return [path for path, kind in zip(paths, kinds) if kind == split], True


def _kind(path: str) -> Split | None:
    for part in reversed(PurePath(path).parts[-2:]):  # the file's name takes precedence over its folder's
        words = re.split(r"[^a-z]+", part.lower())
        if any(word in words for word in TEST_NAMES):
            return "test"
        if any(word in words for word in TRAIN_NAMES):
            return "train"
    return None


def spread(rows: Sequence[T], limit: int | None) -> list[T]:
    """Return `limit` evenly spaced rows; all rows if `limit` is None or not smaller than their number."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]
