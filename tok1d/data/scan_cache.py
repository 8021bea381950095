"""A disk cache of the results of scanning data (indices of shards, broken files), as JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tok1d.files import replacing

_writable = True


def cache_writable() -> bool:
    """Whether the cache may be written to: False inside of `read_only_cache`."""
    return _writable


@contextmanager
def read_only_cache() -> Iterator[None]:
    """Context in which nothing is written to the cache, no data set is downloaded and no large folder is scanned.

    Global state: not safe to enter from several threads at once.
    """
    global _writable
    before, _writable = _writable, False
    try:
        yield
    finally:
        _writable = before


def stat_text(path: str | Path) -> str:
    """Return a text that changes when a file is replaced or written to: its path, size, inode and times.

    Links are followed. The time of change (ctime) also changes where a copy keeps the time of modification.
    """
    place = os.path.abspath(path)
    try:
        stat = os.stat(path)
    except OSError:
        return f"gone {place}"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino} {place}"


def read_scan(path: Path) -> object:
    """Return the cached JSON value, or None if the file is missing or unreadable."""
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return None


def write_scan(path: Path, found: object) -> None:
    """Store a JSON value atomically. Errors are ignored: without the cache the scan is repeated."""
    if not _writable:
        return
    with suppress(OSError), replacing(path) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
