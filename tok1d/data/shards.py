"""Tar shards of webdataset with random access, by an index of the members' offsets.

`webdataset` reads shards as a stream in an order of its own. The index gives access to any sample instead, so that the
order is a pure function of seed, epoch and position. `webdataset` still expands the pattern of shards and groups the
members of a sample (`NAME.jpg`, `NAME.cls`, `NAME.txt`).
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tok1d.data.fashion_mnist import cache_home
from tok1d.data.lazy import LazyImages, decoding_pool
from tok1d.data.prints import Kind, hash_file
from tok1d.data.scan_cache import read_scan, stat_text, write_scan
from tok1d.data.source import ImageSource
from tok1d.data.splits import Split, is_test, part_of, spread
from tok1d.errors import DataError, reason_of

IMAGE_KEYS = "jpg;jpeg;png;webp"
_LABEL_KEY = "cls"
FORMAT = "tok1d-shards-2"  # of the cached indices


class Sample(NamedTuple):
    """A sample of a shard: where its image lies in the file, its label and its caption ("" for none)."""

    name: str
    offset: int
    size: int
    label: int | None
    caption: str


def find_shards(root: str) -> list[str]:
    """Return the sorted tar files below a folder, or of a pattern such as DIR/train-{000..010}.tar.

    Raises:
        DataError: there are none, or a file of the pattern is missing.
    """
    from webdataset.shardlists import expand_urls

    if os.path.isdir(root):
        found = sorted(str(path) for path in Path(root).rglob("*.tar") if not path.name.startswith("."))
    else:
        try:
            found = sorted(expand_urls(root))
        except ValueError as error:
            raise DataError(
                f"{root}: not a pattern of shards ({reason_of(error)}): expected a pattern such as DIR/{{000..010}}.tar"
            ) from None
        missing = [path for path in found if not os.path.isfile(path)]
        if missing:
            raise DataError(f"{missing[0]}: no such shard, of {len(found)} in {root}: expected tar files on this disk")
    if not found:
        raise DataError(
            f"{root}: no .tar files: expected a folder of webdataset shards, or a pattern such as {{000..010}}.tar"
        )
    return found


def index_shard(path: str, image_keys: str, label_key: str, caption_key: str | None) -> list[Sample]:
    """Return the samples of a shard that contain an image.

    Args:
        image_keys, label_key, caption_key: member names, see `ShardImages`.

    Raises:
        DataError: the file is not a complete tar file, or a label is not a number from 0.
    """
    from webdataset.tariterators import group_by_keys

    def members(archive: tarfile.TarFile) -> Iterator[dict[str, object]]:
        for member in archive:
            if member.isfile() and not os.path.basename(member.name).startswith("."):
                yield {"fname": member.name, "data": member, "__url__": path}

    def text(sample: dict[str, tarfile.TarInfo], key: str | None) -> str | None:
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
                    rows.append(Sample(sample["__key__"], image.offset_data, image.size, number, caption))
            # tarfile takes a truncated or damaged header for the end of the archive, which is a block of zeros.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"cut off or damaged at byte {archive.offset}")
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        # webdataset appends the sample to the arguments of an error.
        cause = error if isinstance(error, OSError) else ValueError(*error.args[:1])
        raise DataError(f"{path}: not a complete readable shard ({reason_of(cause)}): write it again") from None
    return rows


def index_shards(paths: list[str], image_keys: str, label_key: str, caption_key: str | None) -> list[list[Sample]]:
    """Return `index_shard` of every shard; cached on disk by path, size, inode and times of the file."""

    def one(path: str) -> list[Sample]:
        key = repr((FORMAT, stat_text(path), image_keys, label_key, caption_key))
        record = cache_home() / "shards" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        cached = read_scan(record)
        if isinstance(cached, list):
            return [Sample(*row) for row in cached]
        rows = index_shard(path, image_keys, label_key, caption_key)
        write_scan(record, rows)
        return rows

    return list(decoding_pool().map(one, paths))


class ShardImages(LazyImages):
    """One split of the images in webdataset shards.

    The names of the shards determine the split (see `part_of`), or else a hash of the samples' names. Without
    labels all images are of one class.

    Raises:
        DataError: no shards, a damaged one, or some samples with and some without a label.
    """

    def __init__(self, source: ImageSource, split: Split) -> None:
        root, label_key = str(source.root), source.label_key
        all_shards = find_shards(root)
        shards, by_name = part_of(all_shards, split)
        keys = (source.image_key or IMAGE_KEYS, label_key or _LABEL_KEY, source.captions)
        found = [(shard, sample) for shard, rows in enumerate(index_shards(shards, *keys)) for sample in rows]
        rows = [row for row in found if by_name or is_test(row[1].name) == (split == "test")]
        rows = spread(rows, source.limit)
        if not rows:
            why = f"{len(found)} samples, none in the {split} split" if found else f"no sample has a {keys[0]}"
            raise DataError(f"{root}: {why}; set data.image_key to the member that is the image")
        self.root, self.shards = root, shards
        # Shard, offset and size of every image.
        self._rows = np.array([(shard, sample.offset, sample.size) for shard, sample in rows], dtype=np.int64)
        self._names = [sample.name for _, sample in rows]
        labels = [sample.label for _, sample in found]
        unlabelled = next(((shard, sample) for shard, sample in found if sample.label is None), None)
        if unlabelled is not None and (label_key is not None or any(label is not None for label in labels)):
            raise DataError(
                f"{shards[unlabelled[0]]}: sample {unlabelled[1].name} has no {keys[1]}; "
                "expected a class for every image"
            )
        if labels[0] is not None:  # the other split may have classes that this one lacks
            others = index_shards(sorted(set(all_shards) - set(shards)), *keys)
            labels += [sample.label for samples in others for sample in samples]
        num_classes = 1 + max(label or 0 for label in labels)
        own = np.array([sample.label or 0 for _, sample in rows], dtype=np.int64)
        names = [str(number) for number in range(num_classes)]
        captions = [sample.caption for _, sample in rows]
        super().__init__(source.transform, source.on_broken, names, own, captions, source.workers)

    def name(self, index: int) -> str:
        return f"{self.shards[self._rows[index][0]]}, sample {self._names[index]}"

    def read(self, index: int) -> bytes:
        shard, offset, size = self._rows[index].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return file.read(size)

    def _keys(self) -> list[str]:
        return self._names

    def _sources(self) -> list[str]:
        return self.shards

    def _hashes(self, kind: Kind) -> Iterable[bytes]:
        def one(row: np.ndarray) -> bytes:
            shard, offset, size = row.tolist()
            return hash_file(self.shards[shard], kind, offset, size)

        return decoding_pool(self.workers).map(one, self._rows)

    def _older_fingerprint(self) -> str:
        digest = hashlib.sha256(self.transform.fingerprint().encode())
        for name, size, label in zip(self._names, self._rows[:, 2], self.labels, strict=True):
            digest.update(f"\n{label} {size} {name}".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]
