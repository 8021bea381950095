"""Tar shards of webdataset with random access, by an index of the members' offsets.

`webdataset` reads shards as a stream in an order of its own. The index gives access to any sample instead, so that the
order is a pure function of seed, epoch and position. `webdataset` still expands the pattern of shards. Samples are
named as it names them (`NAME.jpg`, `NAME.cls`, `NAME.txt`), see `tar_index`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tok1d.data.classes import check_number, numbers_note, ordered
from tok1d.data.lazy import LazyImages, decoding_pool
from tok1d.data.listing import identity, list_folder
from tok1d.data.prints import Kind, hash_file
from tok1d.data.source import ImageSource
from tok1d.data.splits import (
    Split,
    hash_split,
    hash_text,
    kinds_of_files,
    near_miss,
    part_of,
    role_of,
    spread,
    words_of,
)
from tok1d.data.tar_index import LABEL_KEY, PREFERRED, Index, index_shard, index_shards
from tok1d.errors import DataError, reason_of

__all__ = ["ShardImages", "default_part", "find_shards", "index_shard"]

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


def find_shards(root: str) -> list[str]:
    """Return the sorted tar files below a folder, or of a pattern such as DIR/train-{000..010}.tar.

    Raises:
        DataError: there are none, one is compressed or cannot be opened, or a file of the pattern is missing.
    """
    from webdataset.shardlists import expand_urls

    if os.path.isdir(root):
        files = [
            (name, why) for name, why in list_folder(root).left_out if name.lower().endswith((".tar", *COMPRESSED))
        ]
        seen = [(str(Path(root, name)), why) for name, why in files if why != "hidden" and "of a program" not in why]
        found = sorted(path for path, _ in seen)
        lost = next(((path, why) for path, why in seen if why != "not an image"), None)
        if lost is not None:
            raise DataError(f"{lost[0]}: {lost[1]}: expected tar files on this disk")
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
    packed = next((path for path in found if path.lower().endswith(COMPRESSED)), None)
    if packed is not None:
        raise DataError(f"{packed}: a compressed tar file has no random access: expected .tar: decompress it")
    if not found:
        raise DataError(
            f"{root}: no .tar files: expected a folder of webdataset shards, or a pattern such as {{000..010}}.tar"
        )
    return found


def _relative(root: str, shards: Sequence[str]) -> list[str]:
    """The paths of shards relative to the folder of the data, so that its own name states no split."""
    base = root if os.path.isdir(root) else os.path.commonpath([os.path.dirname(path) or "." for path in shards])
    return [Path(os.path.relpath(path, base or ".")).as_posix() for path in shards]


def default_part(root: str) -> tuple[Split, str]:
    """Return the split of shards that is measured unless another is chosen, and a line about it, "" for none.

    It is "all" for a folder whose name is that of a test split, without names of splits inside.
    """
    if not os.path.isdir(root) or any(kinds_of_files(_relative(root, find_shards(root)))):
        return "test", ""
    role = role_of(Path(root).resolve().name)
    if role is None or role.kind not in ("test", "val") or role.rest:
        return "test", ""
    return "all", "measured whole, as the folder is named like a test split"


class ShardImages(LazyImages):
    """One split of the images in webdataset shards, or all.

    The names of the shards determine the split (see `part_of`), or else a hash of the samples' names. Without
    labels all images are of one class. If every class is a number, it is that of the class, else the classes are the
    names.

    Raises:
        DataError: no shards, a damaged one, some samples with and some without a label, or names of shards that state a
            split for some of them only.
    """

    def __init__(self, source: ImageSource, split: Split) -> None:
        root, label_key = str(source.root), source.label_key
        all_shards = find_shards(root)
        relative = _relative(root, all_shards)
        _check_names(root, relative, split)
        names, by_name = part_of(relative, split)
        shards = [path for path, name in zip(all_shards, relative) if name in set(names)]
        keys = (source.image_key, label_key or LABEL_KEY, source.captions)
        if by_name and split == "train":
            _check_links(root, dict(zip(relative, all_shards)), names)
        indices = dict(zip(all_shards, index_shards(all_shards, *keys), strict=True))
        found = [(shard, sample) for shard, path in enumerate(shards) for sample in indices[path].samples]
        rows, how = found, f"the {split} split, {len(shards)} of {len(all_shards)} shards by their names"
        if split == "all":
            how = "all images"
        elif not by_name:
            try:
                _check_members([sample.name for _, sample in found])
                tests = hash_split([sample.name for _, sample in found])
            except DataError as error:
                raise DataError(f"{root}: {error}") from None
            rows = [row for row, is_one in zip(found, tests) if is_one == (split == "test")]
            how = hash_text(sum(tests), len(tests))
        rows = spread(rows, source.limit)
        if not rows:
            kinds = source.image_key or ", ".join(PREFERRED[:4]) + " or other image"
            why = f"{len(found)} samples, none in the {split} split" if found else f"no sample has a {kinds}"
            raise DataError(f"{root}: {why}; set data.image_key to the member that is the image")
        self.root, self.shards = root, shards
        # Shard, offset and size of every image.
        self._rows = np.array([(shard, sample.offset, sample.size) for shard, sample in rows], dtype=np.int64)
        self._names = [sample.name for _, sample in rows]
        labels = {sample.label for index in indices.values() for sample in index.samples}
        if labels != {None} or label_key is not None:
            for shard, sample in found:
                if sample.label is None:
                    raise DataError(
                        f"{shards[shard]}: sample {sample.name} has no {keys[1]}; expected a class for every image"
                    )
        classes, notes = _classes(root, indices, source)
        label_of = {name: number for number, name in enumerate(classes)}
        own = np.array([0 if s.label is None else label_of[str(s.label)] for _, s in rows], dtype=np.int64)
        captions = [sample.caption for _, sample in rows]
        super().__init__(source.transform, source.on_broken, classes, own, captions, source.workers)
        self.how, self.notes = how, notes
        self.left_out = _left_out(root, indices)
        self.notes += [f"{path} holds no image" for path in shards if not indices[path].samples]
        used = set(part_of(relative, "all")[0])
        unused = [path for path in relative if path not in used]
        for path, name in zip(all_shards, relative):
            if name in unused:
                self.left_out += [(f"{path}/{sample.name}", "in no split") for sample in indices[path].samples]
        self.notes += [f"{', '.join(unused[:3])}: {len(unused)} shards belong to neither split"] if unused else []

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


def _check_names(root: str, names: Sequence[str], split: Split) -> None:
    """Raise DataError where test shards would be trained on, or shards beside those of splits would be ignored."""
    kinds = kinds_of_files(names)
    unknown = [name for name, kind in zip(names, kinds) if kind is None]
    near = {name: kind for name in unknown for word in words_of(Path(name).stem) if (kind := near_miss(word))}
    if near and len({*near.values(), *kinds} - {None}) > 1:
        name, kind = next(iter(near.items()))
        raise DataError(f"{root}: {name}: is it the {kind} split, misspelled? Rename it")
    test = next((name for name, kind in zip(names, kinds) if kind in ("test", "val")), None)
    if test is not None and None in kinds:
        raise DataError(
            f"{root}: {test} is a test split by its name, beside {names[kinds.index(None)]}, whose name states no "
            "split: expected train or test in the names of all shards"
        )
    if test is not None and split == "train" and "train" not in kinds:
        raise DataError(f"{root}: {test} is a test split by its name, as all shards are: nothing to train on")


def _check_members(samples: Sequence[str]) -> None:
    """Raise DataError where the folders of the members are named like splits, which would be mixed by a hash."""
    folders = {folder: sample for sample in samples for folder in sample.split("/")[:-1]}
    roles = {folder: role for folder in folders if (role := role_of(folder)) is not None and not role.rest}
    found = next((folder for folder, role in roles.items() if role.kind in ("test", "val")), None)
    if found is not None:
        raise DataError(
            f"sample {folders[found]}: in a folder named like a test split, inside of a shard: expected the splits in "
            "shards of their own, such as train-000.tar and test-000.tar"
        )


def _check_links(root: str, path_of: dict[str, str], train: Sequence[str]) -> None:
    """Raise DataError where a training shard is the same file as one of another split, by links."""
    others = {identity(path): name for name, path in path_of.items() if name not in set(train)}
    for name in train:
        if (own := identity(path_of[name])) in others:
            raise DataError(f"{root}: {name} is the same file as {others[own]}, by links: remove one of them")


def _classes(root: str, indices: dict[str, Index], source: ImageSource) -> tuple[list[str], list[str]]:
    """The class names of all shards, and lines about them; a name in any class file makes all of them names."""
    labels: dict[int | str, str] = {}
    for path, index in indices.items():
        for sample in index.samples:
            if sample.label is not None:
                labels.setdefault(sample.label, f"{path}, sample {sample.name}")
    names = [label for label in labels if isinstance(label, str)]
    if not labels:
        inside = {sample.name.rpartition("/")[0] for index in indices.values() for sample in index.samples}
        note = f"samples lie in {len(inside):,} folders, but have no {source.label_key or LABEL_KEY}: one class"
        return ["0"], [note] * (len(inside) > 1)
    if not names:
        numbers = [int(label) for label in labels]
        check_number(max(numbers), labels[max(numbers)])
        return [str(number) for number in range(1 + max(numbers))], numbers_note(numbers)
    if len(names) < len(labels):
        number = next(label for label in labels if not isinstance(label, str))
        raise DataError(
            f"{labels[number]}: class {number}, but {labels[names[0]]} has {names[0]!r}: expected numbers or names in "
            "all class files"
        )
    return ordered(set(names), source.class_order), []


def _left_out(root: str, indices: dict[str, Index]) -> list[tuple[str, str]]:
    """(name, reason) of the files beside the shards and of the members that are not read."""
    beside: list[tuple[str, str]] = []
    if os.path.isdir(root):
        shards = {os.path.relpath(path, root) for path in indices}
        listing = list_folder(root)
        beside = [each for each in listing.left_out if each[0] not in shards]
        beside += [(file, "beside the shards") for file in listing.files]
    return beside + [(f"{path}/{name}", why) for path, index in indices.items() for name, why in index.left_out]
