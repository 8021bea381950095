"""The samples of a tar shard, as webdataset names them, with the places of their images in the file."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from tok1d.data.classes import class_name
from tok1d.data.fashion_mnist import cache_home
from tok1d.data.filetypes import FORMATS, NOT_READ, OTHER, READ, folder_reason, format_of, suffix_of, unavailable
from tok1d.data.lazy import decoding_pool
from tok1d.data.scan_cache import read_scan, stat_text, write_scan
from tok1d.errors import DataError, reason_of

LABEL_KEY = "cls"
FORMAT = "tok1d-shards-4"  # of the cached indices
# Where a sample has several images, the first of these suffixes is taken.
PREFERRED = ("jpg", "jpeg", "png", "webp", *sorted(suffix[1:] for suffix in READ))
_LONGEST_CLASS_NAME = 200


class Sample(NamedTuple):
    """A sample of a shard: where its image lies in the file, its class and its caption ("" for none).

    `label` is the number or the name in the class file, None without one.
    """

    name: str
    offset: int
    size: int
    label: int | str | None
    caption: str


class Index(NamedTuple):
    """The samples of a shard that contain an image, and (name, reason) of the members that are not read."""

    samples: list[Sample]
    left_out: list[tuple[str, str]]


class _Shard:
    """The members of an open archive by key and suffix, wherever they lie in it."""

    def __init__(self, archive: tarfile.TarFile, whole_suffix: bool) -> None:
        self.archive = archive
        self.groups: dict[str, dict[str, tarfile.TarInfo]] = {}
        self.left_out: list[tuple[str, str]] = []
        for member in archive:
            if member.isdir():
                continue
            if (reason := _member_reason(member)) is not None:
                self.left_out.append((member.name, reason))
                continue
            key, suffix = _key(member.name, whole_suffix)
            group = self.groups.setdefault(key, {})
            if suffix in group:
                raise ValueError(f"member {member.name} occurs twice")
            group[suffix] = member

    def read(self, member: tarfile.TarInfo, count: int = -1) -> bytes:
        file = self.archive.extractfile(member)
        assert file is not None, "links are left out"
        return file.read(count)

    def text(self, key: str, suffix: str | None) -> str | None:
        """The text of a member of a sample, or None; `cat.cls` also belongs to `cat.01.jpg`."""
        for name in (key, _key(key + ".", True)[0]):
            member = self.groups.get(name, {}).get(suffix) if suffix else None
            if member is not None:
                try:
                    return self.read(member).decode("utf-8-sig").strip()
                except UnicodeDecodeError:
                    raise DataError(f"{member.name}: expected UTF-8 text") from None
        return None

    def reason(self, member: tarfile.TarInfo) -> str | None:
        """Why a member is no image that is read, or None; as `file_reason`."""
        suffix = suffix_of(member.name)
        if suffix in READ:
            return f"this Pillow cannot read {unavailable()[suffix]}" if suffix in unavailable() else None
        if suffix in NOT_READ:
            return f"{suffix[1:]} is not read"
        kind = "" if suffix in (*OTHER, f".{LABEL_KEY}") else format_of(self.read(member, 64))
        return None if kind in FORMATS else f"{kind} is not read" if kind else "not an image"


def _member_reason(member: tarfile.TarInfo) -> str | None:
    *folders, name = PurePosixPath(member.name).parts or ("",)
    if name.startswith("."):
        return "hidden"
    inside = next((why for folder in folders if folder != ".." and (why := folder_reason(folder))), None)
    if member.issparse():
        return "a sparse file, which is not read"
    return inside or (None if member.isfile() else "a link or a device")


def _key(name: str, whole_suffix: bool) -> tuple[str, str]:
    """Return key and suffix of a member: before and after the first dot of its file name, as webdataset has it.

    Unless `whole_suffix`, numbers before the last suffix belong to the key: cat.01.jpg is a sample cat.01.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    numbers, dot, last = suffix.rpartition(".")
    if dot and not whole_suffix and not re.search("[^0-9.]", numbers):
        stem, suffix = f"{stem}.{numbers}", last
    return f"{folder}{slash}{stem}", suffix.lower()


def index_shard(path: str, image_keys: str | None, label_key: str, caption_key: str | None) -> list[Sample]:
    """Return the samples of `read_shard`."""
    return read_shard(path, image_keys, label_key, caption_key).samples


def read_shard(path: str, image_keys: str | None, label_key: str, caption_key: str | None) -> Index:
    """Return the samples of a shard that contain an image, in the order of their first members.

    Args:
        image_keys, label_key, caption_key: suffixes of members, those of images separated by semicolons; without
            `image_keys` every image that is read counts. Where no member of a sample has the suffix of an image alone,
            as in cat.left.jpg, each image is a sample.

    Raises:
        DataError: the file is not a complete tar file, a member occurs twice, or a class is neither a number from 0
            nor a name.
    """
    keys = None if image_keys is None else image_keys.lower().split(";")
    rows = []
    try:
        with tarfile.open(path, "r:") as archive:
            shard = _Shard(archive, whole_suffix=any("." in key for key in keys or ()))
            # tarfile takes a truncated or damaged header for the end of the archive, which is a block of zeros.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"cut off or damaged at byte {archive.offset}")
            for key, group in shard.groups.items():
                images = _images(shard, key, group, keys)
                for name, suffix in images:
                    text = shard.text(name, label_key)
                    label = None if text is None else _label(text, name)
                    caption = shard.text(name, caption_key) or ""
                    member = group[suffix]
                    rows.append(Sample(name, member.offset_data, member.size, label, caption))
                used = {suffix for _, suffix in images} | {label_key, caption_key}
                for suffix, member in group.items():
                    if suffix not in used:
                        beside = f"beside {images[0][0]}" if images else "not one of data.image_key"
                        shard.left_out.append((member.name, shard.reason(member) or f"an image {beside}"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        cause = error if isinstance(error, OSError) else ValueError(*error.args[:1])
        raise DataError(f"{path}: not a complete readable shard ({reason_of(cause)}): write it again") from None
    return Index(rows, shard.left_out)


def _images(
    shard: _Shard, key: str, group: dict[str, tarfile.TarInfo], keys: Sequence[str] | None
) -> list[tuple[str, str]]:
    """Return (name of the sample, suffix of its image) of the members of one key."""
    chosen = next((suffix for suffix in keys or PREFERRED if suffix in group), None)
    if chosen is not None:
        return [] if keys is None and shard.reason(group[chosen]) else [(key, chosen)]
    if keys is not None:
        return []
    return [
        (f"{key}.{suffix.rpartition('.')[0]}" if "." in suffix else key, suffix)
        for suffix, member in group.items()
        if shard.reason(member) is None
    ]


def _label(text: str, name: str) -> int | str:
    """Return the number or the name in a class file.

    Raises:
        DataError: a number below 0 or with decimals, no text, JSON, or a text of several lines or hundreds of letters.
    """
    shown = text if len(text) <= 40 else text[:37] + "..."
    if re.fullmatch(r"[+-]?[0-9]+(\.0*)?", text) and len(text) < 40 and int(text.split(".")[0]) >= 0:
        return int(text.split(".")[0])
    number = re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]+)?", text)
    if number or not text.isprintable() or text[0] in "{[" or len(text) > _LONGEST_CLASS_NAME:
        raise DataError(
            f"label {shown!r} of {name}: expected a number from 0, or a name of at most {_LONGEST_CLASS_NAME} letters"
        )
    return class_name(text)


def index_shards(paths: Sequence[str], image_keys: str | None, label_key: str, caption_key: str | None) -> list[Index]:
    """Return `read_shard` of every shard; cached on disk by path, size, inode and times of the file."""

    def one(path: str) -> Index:
        key = repr((FORMAT, stat_text(path), image_keys, label_key, caption_key))
        digest = hashlib.sha256(key.encode(errors="surrogateescape"))
        record = cache_home() / "shards" / f"{digest.hexdigest()[:24]}.json"
        cached = read_scan(record)
        if isinstance(cached, list) and len(cached) == 2:
            return Index([Sample(*row) for row in cached[0]], [(name, why) for name, why in cached[1]])
        index = read_shard(path, image_keys, label_key, caption_key)
        write_scan(record, index)
        return index

    return list(decoding_pool().map(one, paths))
