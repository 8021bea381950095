"""Writing files and folders: whole or not at all."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from tok1d.errors import ConfigError


def new_folder(out: Path, *, overwrite: bool) -> Path:
    """A folder to write pictures into; one that already holds files is refused unless `overwrite`."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder to write into, found a file")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{out}: not empty; pass --overwrite to write into it, or choose another --out")
    return out


def _clear(out: Path, own: str) -> None:
    """Remove the pictures that an earlier run of a command left in its folder, by the pattern of their names."""
    for path in out.iterdir() if out.is_dir() else ():
        if re.fullmatch(own, path.name):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, in a folder that is made if need be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # already renamed, or never made
            temporary.unlink()
