"""Writing files and folders: whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tok1d.errors import ConfigError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write into; it takes the place of `path` when the block ends without an error.

    The folder is made if need be. The temporary name holds the process number, so that several processes may write the
    same file; `remove_left` deletes what a killed process left. After an error nothing of the block stays.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # renamed already, or never made
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; raises OSError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_left(path: Path) -> None:
    """Delete the temporary files that killed processes left beside `path`."""
    for left in Path(path).parent.glob(f".{_escaped(Path(path).name)}.*.tmp"):
        left.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def new_folder(out: Path, *, overwrite: bool) -> Path:
    """A folder to write pictures into; one that already holds files is refused unless `overwrite`.

    Raises:
        ConfigError: it is a file, or holds files.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder to write into, got a file")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{out}: not empty; pass --overwrite to write into it, or choose another --out")
    return out


def clear(out: Path, pattern: str) -> None:
    """Delete the files of a folder whose whole name matches a regular expression: what an earlier command wrote."""
    for path in out.iterdir() if out.is_dir() else ():
        if re.fullmatch(pattern, path.name):
            path.unlink()
