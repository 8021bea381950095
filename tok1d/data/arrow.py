"""Hugging Face data sets on disk, as `save_to_disk` writes them; `datasets` gives random access to their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tok1d.data.classes import check_number, numbers_note
from tok1d.data.lazy import LazyImages
from tok1d.data.prints import Kind, hash_bytes, hash_file
from tok1d.data.source import ImageSource
from tok1d.data.splits import Split, find_splits, hash_split, hash_text, spread
from tok1d.errors import DataError, reason_of

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import StructScalar


def open_arrow(root: str | Path, split: Split) -> tuple[Dataset, str, list[Dataset], list[str]]:
    """Open a folder that `save_to_disk` wrote.

    Returns:
        The data set of the split (or of all splits joined), how the names state the split ("" if the data set has no
        splits of its own, as a single data set, or only a training set), the data sets of all splits, and lines about
        those that belong to neither.

    Raises:
        DataError: no such folder or split, or doubtful names of splits, see `splits`.
    """
    import datasets

    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder: expected one written by datasets' save_to_disk")
    try:
        found = datasets.load_from_disk(str(root))
    except Exception as error:  # of pyarrow, json or the file system
        raise DataError(f"{root}: expected a folder written by datasets' save_to_disk ({reason_of(error)})") from None
    if not isinstance(found, datasets.DatasetDict):
        return found, "", [found], []
    try:
        splits, others = find_splits(found, "split")
    except DataError as error:
        raise DataError(f"{root}: {error}") from None
    train, test = (splits.train, splits.test) if splits is not None else (None, None)
    if len(found) == 1 and test is None:
        (only,) = found.values()
        return only, "", [only], []
    named = {"train": train, "test": test}
    wanted = [named[split]] if split != "all" else [name for name in (train, test) if name is not None]
    if None in wanted or not wanted or (train is None and others):
        raise DataError(f"{root}: has the splits {', '.join(found)}: expected train and test for the {split} images")
    beside = [*others, *(splits.neither if splits is not None else [])]
    notes = [f"split {name} ({len(found[name]):,} rows) belongs to neither train nor test" for name in beside]
    parts = [found[name] for name in wanted]
    own = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    return own, f"split {' and '.join(map(str, wanted))}", list(found.values()), notes


class ArrowImages(LazyImages):
    """One split of a data set that `datasets` saved.

    Without splits of its own, 5 % of the rows are for testing, by a hash of folder name and row number. Without a
    column for the label, all images are of one class.

    Raises:
        DataError: no such folder, column or split, or columns of other types.
    """

    def __init__(self, source: ImageSource, split: Split) -> None:
        import datasets

        root, label_key, captions = str(source.root), source.label_key, source.captions
        data, how, all_splits, notes = open_arrow(root, split)
        self._column, columns = source.image_key or "image", ", ".join(data.column_names)
        for what, key in (("image_key", self._column), ("label_key", label_key), ("captions", captions)):
            if key is not None and key not in data.column_names:
                raise DataError(f"{root}: data.{what}: no column {key!r}, expected one of {columns}")
        if not isinstance(data.features[self._column], datasets.Image):
            raise DataError(
                f"{root}: data.image_key: expected a column of images, got {self._column}; the columns are {columns}"
            )
        self.root, self._data = root, data.cast_column(self._column, datasets.Image(decode=False))
        rows = list(range(len(data)))
        if not how and split != "all":
            try:
                tests = hash_split([f"{root_name(root)}/{i}" for i in rows])
            except DataError as error:
                raise DataError(f"{root}: {error}") from None
            rows, how = [i for i in rows if tests[i] == (split == "test")], hash_text(sum(tests), len(tests))
        self._rows = spread(rows, source.limit)
        if not self._rows:
            raise DataError(
                f"{root}: {len(data)} rows, none in the {split} split: save a DatasetDict with train and test"
            )
        label_key = label_key or ("label" if "label" in data.column_names else None)
        names, labels, about = _classes(data, label_key, root, all_splits)
        column = data[captions] if captions is not None else None
        texts = ["" if column is None or column[row] is None else column[row] for row in self._rows]
        if (wrong := next((text for text in texts if not isinstance(text, str)), None)) is not None:
            raise DataError(
                f"{root}: data.captions: expected one text per row in column {captions}, got {str(wrong)[:60]}"
            )
        super().__init__(source.transform, source.on_broken, names, labels[self._rows], texts, source.workers)
        self.how, self.notes = how or "all images", [*notes, *about]

    def name(self, index: int) -> str:
        return f"{self.root}, row {self._rows[index]}"

    def read(self, index: int) -> Path | bytes:
        entry = self._data[self._rows[index]][self._column]
        if entry is None or (entry["bytes"] is None and entry["path"] is None):
            raise DataError("no image in this row")
        return entry["bytes"] if entry["bytes"] is not None else Path(entry["path"])

    def _keys(self) -> list[str]:
        return [str(row) for row in self._rows]

    def _sources(self) -> list[str]:
        outside = [entry["path"].as_py() for entry in self._entries() if not entry["bytes"].is_valid]
        return [each["filename"] for each in self._data.cache_files] + [path for path in outside if path is not None]

    def _hashes(self, kind: Kind) -> Iterator[bytes]:
        return (_hash_entry(entry, kind) for entry in self._entries())

    def _entries(self) -> Iterator[StructScalar]:
        """Yield the bytes and path of each image; bytes are read from the disk only where they are used."""
        table = self._data.select_columns([self._column]).with_format("arrow")
        wanted, start = set(self._rows), 0
        for batch in table.iter(batch_size=1000):
            column = batch.column(self._column)
            yield from (column[row] for row in range(len(column)) if start + row in wanted)
            start += len(column)

    def _older_fingerprint(self) -> str:
        # datasets' own fingerprint, which need not change with an image that is replaced before it is saved.
        digest = hashlib.sha256(f"{self.transform.fingerprint()} {self._data._fingerprint}".encode())
        digest.update(np.array(self._rows, dtype=np.int64).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()[:16]


def _hash_entry(entry: StructScalar, kind: Kind) -> bytes:
    """Return a hash of an image's file, which is in the row or, by its path, outside of it."""
    content, path = entry["bytes"], entry["path"]
    if content.is_valid:
        return hash_bytes(memoryview(content.as_buffer()), kind)
    return hash_file(path.as_py(), kind) if path.is_valid else bytes(16)


def root_name(root: str | Path) -> str:
    """Return the name of the folder, with symbolic links resolved."""
    return Path(root).resolve().name


def _classes(
    data: Dataset, key: str | None, root: str, all_splits: list[Dataset]
) -> tuple[list[str], np.ndarray, list[str]]:
    """Return the class names of all splits, the label of every row of one split, int64 (N,), and lines about them."""
    import datasets

    if key is None:
        return [root_name(root)], np.zeros(len(data), dtype=np.int64), []
    feature, values = data.features[key], data[key][:]
    if any(type(value) is not int or value < 0 for value in values):
        wrong = next(value for value in values if type(value) is not int or value < 0)
        raise DataError(f"{root}: data.label_key: expected integers >= 0 in column {key}, got {wrong!r}")
    used = {value for each in all_splits if key in each.column_names for value in each[key][:] if type(value) is int}
    check_number(max(used), f"{root}, column {key}")
    labels = np.array(values, dtype=np.int64)
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names), labels, []
    return [str(number) for number in range(max(used) + 1)], labels, numbers_note(used)
