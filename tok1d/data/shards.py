"""Tar shards as webdataset writes them, read at random: an index of member offsets, made once, and the files' bytes.

`webdataset` itself expands the pattern and groups members into samples (`NAME.jpg`, `NAME.cls`, `NAME.txt`); it reads
as a stream, in an order of its own, so the index is what keeps order a pure function of seed, epoch and position.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tok1d.data.decoded import DecodedImages, OnBroken, threads
from tok1d.data.fashion_mnist import cache_home
from tok1d.data.records import keep, recall
from tok1d.data.splits import Split, is_test, part_of, spread
from tok1d.data.transforms import Transform
from tok1d.errors import DataError

IMAGE_KEYS = "jpg;jpeg;png;webp"
_LABEL_KEY = "cls"
FORMAT = "tok1d-shards-2"


def find_shards(root: str) -> list[str]:
    """The tar files of a folder (searched whole) or of a pattern such as DIR/train-{000..010}.tar, sorted.

    Raises DataError where there are none, or one of the pattern is missing.
    """
    from webdataset.shardlists import expand_urls

    if os.path.isdir(root):
        found = sorted(str(path) for path in Path(root).rglob("*.tar") if not path.name.startswith("."))
    else:
        try:
            found = sorted(expand_urls(root))
        except ValueError as error:
            raise DataError(
                f"{root}: not a pattern of shards ({error}): expected such as DIR/{{000..010}}.tar"
            ) from None
        missing = [path for path in found if not os.path.isfile(path)]
        if missing:
            raise DataError(f"{missing[0]}: no such shard, of {len(found)} in {root}: expected tar files on this disk")
    if not found:
        raise DataError(
            f"{root}: no .tar files there: expected webdataset shards, or a pattern such as {{000..010}}.tar"
        )
    return found


def index_shard(path: str, image_keys: str, label_key: str, caption_key: str | None) -> list[list[Any]]:
    """The samples of a shard that hold an image: [name, image offset, image bytes, label or None, caption].

    Raises DataError naming a file that is not a whole tar file, or a label that is no number from 0 on.
    """
    from webdataset.tariterators import group_by_keys

    def members(archive: tarfile.TarFile) -> Iterator[dict[str, Any]]:
        for member in archive:
            if member.isfile() and not os.path.basename(member.name).startswith("."):
                yield {"fname": member.name, "data": member, "__url__": path}

    def text(sample: dict[str, Any], key: str | None) -> str | None:
        member = sample.get(key) if key else None
        return None if member is None else archive.extractfile(member).read().decode().strip()  # type: ignore[union-attr]

    rows = []
    try:
        with tarfile.open(path, "r:") as archive:
            for sample in group_by_keys(members(archive)):
                image = next((sample[key] for key in image_keys.lower().split(";") if key in sample), None)
                if image is not None:
                    label = text(sample, label_key)
                    number = None if label is None else int(label)
                    if number is not None and number < 0:
                        raise ValueError(f"label {number} of {sample['__key__']}")
                    caption = text(sample, caption_key) or ""
                    rows.append([sample["__key__"], image.offset_data, image.size, number, caption])
            # tarfile takes a header that is cut off or damaged for the end; the real end is a block of zeros.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"cut off or damaged at byte {archive.offset}")
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        why = " ".join(str(error.args[0] if error.args else error).split())
        raise DataError(f"{path}: not a readable shard of whole samples ({why}): write it again") from None
    return rows


def index_shards(paths: list[str], image_keys: str, label_key: str, caption_key: str | None) -> list[list[list[Any]]]:
    """`index_shard` of every shard, by threads; what was found of equal files (names, sizes, times) is kept on disk."""

    def one(path: str) -> list[list[Any]]:
        stat = os.stat(path)
        key = repr((FORMAT, os.path.abspath(path), stat.st_size, stat.st_mtime_ns, image_keys, label_key, caption_key))
        record = cache_home() / "shards" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        rows: list[list[Any]] | None = recall(record)
        if rows is None:
            rows = index_shard(path, image_keys, label_key, caption_key)
            keep(record, rows)
        return rows

    return list(threads().map(one, paths))


class ShardImages(DecodedImages):
    """Images in webdataset shards, one split of them (see `part_of`); their bytes are read where the index says.

    Args:
        root: a folder of tar files, or a pattern.
        image_key: member that is the image, several separated by ";"; default: jpg;jpeg;png;webp.
        label_key: member that is the class, a number; default: cls, and without any all images are of one class.
        captions: member that is the caption, such as txt.
        limit: so many of them, spread evenly.

    Raises:
        DataError: no shards, a damaged one, or some samples with and some without a label.
    """

    def __init__(
        self,
        root: str,
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
        everything = find_shards(root)
        shards, by_name = part_of(everything, split)
        keys = (image_key or IMAGE_KEYS, label_key or _LABEL_KEY, captions)
        found = [(number, *row) for number, rows in enumerate(index_shards(shards, *keys)) for row in rows]
        rows = found if by_name else [row for row in found if is_test(row[1]) == (split == "test")]
        rows = spread(rows, limit)
        if not rows:
            why = f"{len(found)} samples, none in the {split} split" if found else f"no sample has a {keys[0]}"
            raise DataError(f"{root}: {why}; data.image_key names the member that is the image")
        self.root, self.shards = root, shards
        self._rows = np.array([(row[0], row[2], row[3]) for row in rows], dtype=np.int64)  # shard, offset, bytes
        self._names = [row[1] for row in rows]
        labels = [row[4] for row in found]
        unlabelled = next((row for row in found if row[4] is None), None)
        if unlabelled is not None and (label_key is not None or any(label is not None for label in labels)):
            raise DataError(
                f"{shards[unlabelled[0]]}: sample {unlabelled[1]} has no {keys[1]}; expected a class for every image"
            )
        if labels[0] is not None:  # the other split may have classes that this one lacks
            others = index_shards(sorted(set(everything) - set(shards)), *keys)
            labels += [row[3] for rows_of_shard in others for row in rows_of_shard]
        num_classes = 1 + max(label or 0 for label in labels)
        own = np.array([row[4] or 0 for row in rows], dtype=np.int64)
        names = [str(number) for number in range(num_classes)]
        super().__init__(transform, on_broken, names, own, [row[5] for row in rows], workers)

    def name(self, index: int) -> str:
        return f"{self.shards[self._rows[index][0]]}, sample {self._names[index]}"

    def read(self, index: int) -> bytes:
        shard, offset, size = self._rows[index].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return file.read(size)

    def fingerprint(self) -> str:
        """Return 16 hex digits of names, sizes and labels, of the shards' order and of the transform."""
        digest = hashlib.sha256(self.transform.fingerprint().encode())
        for name, size, label in zip(self._names, self._rows[:, 2], self.labels, strict=True):
            digest.update(f"\n{label} {size} {name}".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]
