"""Paths as users write them, atomic writes, and output folders. All text files are UTF-8."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tok1d.errors import ConfigError


def as_path(text: str) -> str:
    """A path that a user wrote, for the functions of the file system: every path in text passes through here.

    `~` and `~USER` at the start become the home folder; `./~` is a folder of that name. A character that the file
    system's encoding lacks, as in a C locale, becomes the bytes of its UTF-8 form.

    Raises:
        ConfigError: no file can have this name: it contains the character NUL or half of a surrogate pair.
    """
    text = os.path.expanduser(text)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        with suppress(UnicodeEncodeError):
            text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    if "\0" in text or any("\ud800" <= c <= "\udc7f" or "\udd00" <= c <= "\udfff" for c in text):
        raise ConfigError(f"{text!a}: expected a path, got a character that no path can contain")
    return text


def as_paths(text: str, separator: str) -> str:
    """As `as_path` for each part of a text such as timm:NAME:FILE or MODEL,MODEL."""
    return separator.join(as_path(part) for part in text.split(separator))


def readable(text: str) -> str:
    """Text from a command line or a path, whose undecoded bytes are decoded as UTF-8 where they are UTF-8."""
    with suppress(UnicodeEncodeError):
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return text


def encodable(text: str) -> str:
    r"""As `readable`, for files and terminals: bytes that are not UTF-8 become \xff, lone surrogates \ud800."""
    text = readable(text)
    return "".join(_escape(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def _escape(surrogate: str) -> str:
    code = ord(surrogate)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


@contextmanager
def replacing(path: Path, *, shared: bool = True) -> Iterator[Path]:
    """Yield a temporary file to write into; it is renamed to `path` when the block ends without an error.

    `path` therefore has its old or its complete new content, never a part. Missing parent folders are created. The
    temporary file is deleted after an error, but not when the process is killed.

    Args:
        shared: several processes, on any number of machines, may write `path` at once: the temporary name is random,
            and `remove_left` deletes what a killed process left. Otherwise the name is fixed, so that the next write
            of `path` replaces what a killed process left.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path = Path(path)
    suffix = f"{os.urandom(6).hex()}.tmp" if shared else "tmp"
    temporary = path.with_name(f".{path.name}.{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # already renamed, or never created
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, see `encodable`; raises OSError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(encodable(text), encoding="utf-8")


def remove_left(path: Path) -> None:
    """Delete the temporary files that killed processes left next to `path`."""
    for left in Path(path).parent.glob(f".{_escaped(Path(path).name)}.*.tmp"):
        left.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def new_folder(out: Path, *, overwrite: bool) -> Path:
    """Check that results may be written into the folder `out`, and return it; it is not created.

    Raises:
        ConfigError: `out` is a file, or a folder that is not empty and `overwrite` is false.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder to write into, got a file")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{out}: not empty; pass --overwrite to write into it, or choose another --out")
    return out


def clear(out: Path, pattern: str) -> None:
    """Delete the files in a folder whose whole name matches a regular expression, such as an earlier run's output."""
    for path in out.iterdir() if out.is_dir() else ():
        if re.fullmatch(pattern, path.name):
            path.unlink()
