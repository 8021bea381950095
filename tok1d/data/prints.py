"""What a fingerprint of images sees: names and sizes, the ends of every file, or every byte.

A fingerprint starts with a tag that states its kind. Those without a tag are of older versions, which hashed names and
sizes only. A set of images can be hashed in each way, so an older fingerprint is compared with one of its own kind.
Modification times are no part of a fingerprint: a copy of a data set has the fingerprint of the original.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from tok1d.data.fashion_mnist import cache_home
from tok1d.data.scan_cache import read_scan, stat_text, write_scan
from tok1d.errors import ConfigError

Kind = Literal["names", "ends", "whole"]
END = 8192  # bytes at either end of a file that are hashed; shorter files are hashed whole
CACHED_FROM = 1000  # images; hashes of the contents of smaller sets are not cached
FULL_HASH = "TOK1D_FULL_HASH"  # environment variable: "1" to hash every byte
SEES: dict[Kind, str] = {
    "names": "names, sizes and labels of the images, not their contents",
    "ends": "names, labels, sizes and the first and last 8 KiB of each image file",
    "whole": "names, labels and all bytes of each image file",
}
_TAGS: dict[Kind, str] = {"ends": "e2_", "whole": "w2_"}


def asked_kind() -> Kind:
    """Return the kind of new fingerprints: "whole" within `full_hash` or with TOK1D_FULL_HASH=1, else "ends".

    Raises:
        ConfigError: another value of the variable.
    """
    value = os.environ.get(FULL_HASH, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"{FULL_HASH}: expected 0 or 1, got {value!r}")
    return "whole" if value == "1" else "ends"


@contextmanager
def full_hash() -> Iterator[None]:
    """Context in which new fingerprints hash every byte, also in processes that are started in it."""
    before = os.environ.get(FULL_HASH)
    os.environ[FULL_HASH] = "1"
    try:
        yield
    finally:
        os.environ.pop(FULL_HASH)
        if before is not None:
            os.environ[FULL_HASH] = before


def kind_of_print(fingerprint: object) -> Kind:
    """Return what a fingerprint sees; "names" if it has no tag."""
    return next((kind for kind, tag in _TAGS.items() if str(fingerprint).startswith(tag)), "names")


def tagged(digest: str, kind: Kind) -> str:
    """Return a fingerprint from a hexadecimal digest: the tag and 16 digits."""
    return _TAGS[kind] + digest[:16]


def hash_bytes(content: bytes | memoryview, kind: Kind) -> bytes:
    """Return a hash of a file's content in memory, equal to that of `hash_file`."""
    digest = hashlib.sha256(f"{len(content)} ".encode())
    if kind == "whole" or len(content) <= 2 * END:
        digest.update(content)
    else:
        digest.update(content[:END])
        digest.update(content[-END:])
    return digest.digest()[:16]


def hash_file(path: str | Path, kind: Kind, offset: int = 0, size: int | None = None) -> bytes:
    """Return a hash of a file, or of the `size` bytes from `offset`; that of no bytes if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            if size is None:
                size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size} ".encode())
            parts = (
                [(offset, size)] if kind == "whole" or size <= 2 * END else [(offset, END), (offset + size - END, END)]
            )
            for start, length in parts:
                file.seek(start)
                _hash_part(file, length, digest)
    except OSError:
        return bytes(16)
    return digest.digest()[:16]


def _hash_part(file: BinaryIO, length: int, digest: hashlib._Hash) -> None:
    while length > 0 and (read := file.read(min(length, 1 << 20))):
        digest.update(read)
        length -= len(read)


def cached_digest(kind: Kind, files: Iterable[str | Path], what: str, rows: int, make: Callable[[], str]) -> str:
    """Return `make()`, a digest of the contents of files; cached on disk for sets of `CACHED_FROM` images or more.

    The cached digest counts while path, size, inode, and times of modification and change of all files are the same.

    Args:
        what: the other inputs of the digest, as text.
        rows: number of images.
    """
    if rows < CACHED_FROM:
        return make()
    key = hashlib.sha256(f"{kind} {what}".encode())
    for path in files:
        key.update(os.fsencode(f"\n{stat_text(path)}"))
    record = cache_home() / "contents" / f"{key.hexdigest()[:24]}.json"
    found = read_scan(record)
    if not isinstance(found, str):
        found = make()
        write_scan(record, found)
    return found
