"""A Hugging Face data set on disk (`save_to_disk`): its arrow files are read at random by `datasets` itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from tok1d.data.decoded import DecodedImages, OnBroken
from tok1d.data.splits import TEST_NAMES, TRAIN_NAMES, Split, is_test, spread
from tok1d.data.transforms import Transform
from tok1d.errors import DataError


def open_arrow(root: str | Path, split: Split) -> tuple[Any, bool, list[Any]]:
    """The data set at `root`, of a dictionary of them the split's own, whether it is one, and all that are there.

    Raises:
        DataError: no such folder or split.
    """
    import datasets

    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder: expected one that datasets' save_to_disk wrote")
    try:
        found = datasets.load_from_disk(str(root))
    except Exception as error:  # arrow, json and the file system each have their own
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise DataError(f"{root}: not a folder that datasets' save_to_disk wrote ({why})") from None
    if not isinstance(found, datasets.DatasetDict):
        return found, False, [found]
    names = TRAIN_NAMES if split == "train" else TEST_NAMES
    name = next((name for name in names if name in found), None)
    if name is None:
        if set(found) == {"train"}:
            return found["train"], False, [found["train"]]
        raise DataError(
            f"{root}: has the splits {', '.join(found)}: expected {' or '.join(names)} for the {split} images"
        )
    own = split == "test" or any(other in found for other in TEST_NAMES)
    return found[name], own, list(found.values())


class ArrowImages(DecodedImages):
    """Images of a data set that `datasets` saved, one split of it (5 % by a hash of the row where it has none).

    Args:
        root: the folder.
        image_key: column of images (files' bytes or paths); default: image.
        label_key: column of classes, ClassLabel or numbers; default: label, and without any all are of one class.
        captions: column of captions.
        limit: so many of them, spread evenly.

    Raises:
        DataError: no such folder, column or split.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        transform: Transform,
        on_broken: OnBroken = "skip",
        *,
        image_key: str | None = None,
        label_key: str | None = None,
        captions: str | None = None,
        limit: int | None = None,
        workers: int | None = None,
    ) -> None:
        import datasets

        data, own_split, everything = open_arrow(root, split)
        self._column, columns = image_key or "image", ", ".join(data.column_names)
        for what, key in (("image_key", self._column), ("label_key", label_key), ("captions", captions)):
            if key is not None and key not in data.column_names:
                raise DataError(f"{root}: data.{what}: no column {key!r}, expected one of {columns}")
        if not isinstance(data.features[self._column], datasets.Image):
            raise DataError(f"{root}: data.image_key: column {self._column} holds no images, expected one of {columns}")
        self.root, self._data = root, data.cast_column(self._column, datasets.Image(decode=False))
        rows = [i for i in range(len(data)) if own_split or is_test(f"{root_name(root)}/{i}") == (split == "test")]
        self._rows = spread(rows, limit)
        if not self._rows:
            raise DataError(
                f"{root}: {len(data)} rows, none in the {split} split: save a DatasetDict with train and test"
            )
        label_key = label_key or ("label" if "label" in data.column_names else None)
        names, labels = _classes(data, label_key, root, everything)
        told = data[captions] if captions is not None else None
        texts = ["" if told is None or told[row] is None else told[row] for row in self._rows]
        if (odd := next((text for text in texts if not isinstance(text, str)), None)) is not None:
            raise DataError(f"{root}: data.captions: column {captions} expected one text a row, got {str(odd)[:60]}")
        super().__init__(transform, on_broken, names, labels[self._rows], texts, workers)

    def name(self, index: int) -> str:
        return f"{self.root}, row {self._rows[index]}"

    def read(self, index: int) -> Path | bytes:
        entry = self._data[self._rows[index]][self._column]
        if entry is None or (entry["bytes"] is None and entry["path"] is None):
            raise DataError("no image in this row")
        return entry["bytes"] if entry["bytes"] is not None else Path(entry["path"])

    def fingerprint(self) -> str:
        """Return 16 hex digits of the data set's own fingerprint, of rows and labels and of the transform."""
        digest = hashlib.sha256(f"{self.transform.fingerprint()} {self._data._fingerprint}".encode())
        digest.update(np.array(self._rows, dtype=np.int64).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()[:16]


def root_name(root: str | Path) -> str:
    return Path(root).resolve().name


def _classes(data: Any, key: str | None, root: str | Path, everything: list[Any]) -> tuple[list[str], np.ndarray]:
    """Names of the classes of all splits and the class of every row of one."""
    import datasets

    if key is None:
        return [root_name(root)], np.zeros(len(data), dtype=np.int64)
    feature, values = data.features[key], data[key][:]
    if any(type(value) is not int or value < 0 for value in values):
        wrong = next(value for value in values if type(value) is not int or value < 0)
        raise DataError(f"{root}: data.label_key: column {key} expected numbers from 0 on, got {wrong!r}")
    labels = np.array(values, dtype=np.int64)
    known = list(feature.names) if isinstance(feature, datasets.ClassLabel) else []
    highest = max([int(labels.max()), *(_highest(each, key) for each in everything if each is not data)])
    return known or [str(number) for number in range(highest + 1)], labels


def _highest(data: Any, key: str) -> int:
    """The highest class of another split, -1 where it has none."""
    values = data[key][:] if key in data.column_names else []
    return max((value for value in values if type(value) is int), default=-1)
